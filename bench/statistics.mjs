export const median = (values) => quantile(values, 0.5);

/** Nearest rank of the sorted values, 0 <= share <= 1. */
export function quantile(values, share) {
  const sorted = [...values].sort((left, right) => left - right);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}
