/** Names of machines: one label of DNS, so that they can become host names. */

const MAX_NAME_LENGTH = 63;

/** What a machine calls itself, made usable: lower case, [a-z0-9-], at most 63; "machine" when nothing is left. */
export function sanitiseName(wanted: string): string {
  const clean = wanted
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, MAX_NAME_LENGTH)
    .replace(/^-+|-+$/g, "");
  return clean === "" ? "machine" : clean;
}

/** May a user choose this name as it stands (apart from upper case)? */
export const isUsableName = (name: string): boolean => sanitiseName(name) === name.toLowerCase();

/** The name itself, or with -2, -3, ... behind it, the first that is not taken. */
export function freeName(name: string, isTaken: (name: string) => boolean): string {
  if (!isTaken(name)) return name;
  for (let number = 2; ; number++) {
    const suffix = `-${number}`;
    const candidate = name.slice(0, MAX_NAME_LENGTH - suffix.length).replace(/-+$/, "") + suffix;
    if (!isTaken(candidate)) return candidate;
  }
}
