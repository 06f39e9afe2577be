/**
 * Time as the protocol needs it: CLOCK_BOOTTIME in milliseconds with a fraction, which also counts suspension
 * (lease-model.md section 4). Node can't read it: the transceiver's clock comes from the addon, the simulator's is virtual.
 */
export interface Clock {
  nowMs(): number;
}
