/** A promise that is settled from outside, once. A rejection that nobody awaits is not the process's business: outcomes are also told elsewhere. */
export class Settled<Value> {
  readonly promise: Promise<Value>;
  #resolve: (value: Value) => void = () => {};
  #reject: (error: Error) => void = () => {};

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.promise.catch(() => {});
  }

  resolve(value: Value): void {
    this.#resolve(value);
  }

  reject(error: Error): void {
    this.#reject(error);
  }
}
