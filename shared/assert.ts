/** Ends a `switch` over a union: a type error when a member is missing, an exception when the types lied. */
export function assertNever(value: never): never {
  throw new Error(`Unexpected value: ${JSON.stringify(value)}`);
}
