/**
 * Which Deno permissions the coordinator needs, and the words for what is missing. Imports nothing, so that it works before anything
 * else does. deno.json's "permissions" grants exactly these (a test compares them).
 */

/** Every variable that we or `ws` read. Deno refuses others even where a program only asks whether they are set. */
export const ENVIRONMENT = [
  "HOME",
  "XDG_STATE_HOME",
  "TUNNELMESH_LISTEN",
  "TUNNELMESH_TLS_CERT",
  "TUNNELMESH_TLS_KEY",
  "TUNNELMESH_SSH_LISTEN",
  "TUNNELMESH_STUN_ADDRESS",
  "TUNNELMESH_STUN_PUBLIC",
  "TUNNELMESH_STUN_PORT",
  "TUNNELMESH_STUN_ALTERNATE_PORT",
  "TUNNELMESH_PUBLIC_HOST",
  "TUNNELMESH_MESH_IPV4",
  "TUNNELMESH_MESH_IPV6",
  "TUNNELMESH_DATA_DIR",
  "TUNNELMESH_LOG_LEVEL",
  "TUNNELMESH_LOG_FORMAT",
  "TUNNELMESH_REUSABLE",
  "TUNNELMESH_EXPIRES",
  "TUNNELMESH_JSON",
  "WS_NO_BUFFER_UTIL",
  "WS_NO_UTF_8_VALIDATE",
] as const;

/** Why each is needed, in the order in which they are told. */
export const PERMISSIONS = {
  net: "to listen for agents",
  read: "to read its database, TLS certificates and the machine's routes",
  write: "to write its database",
  sys: "to list the machine's network addresses",
} as const;

export type PermissionQuery =
  | { readonly name: keyof typeof PERMISSIONS }
  | { readonly name: "env"; readonly variable: string };

/** What to tell the user, or undefined when everything is granted. */
export function missingPermissions(isGranted: (query: PermissionQuery) => boolean, script: string): string | undefined {
  const missing = (Object.keys(PERMISSIONS) as (keyof typeof PERMISSIONS)[])
    .filter((name) => !isGranted({ name }))
    .map((name) => `  ${name.padEnd(6)} ${PERMISSIONS[name]}`);
  const variables = ENVIRONMENT.filter((variable) => !isGranted({ name: "env", variable }));
  if (variables.length === ENVIRONMENT.length) missing.push("  env    to read its settings, TUNNELMESH_... and HOME");
  else if (variables.length > 0) missing.push(`  env    to read ${variables.join(", ")}`);
  if (missing.length === 0) return undefined;
  return [
    "Cannot start: Deno does not allow what the coordinator needs",
    ...missing,
    "Start it from the project's folder with",
    `  deno run -P ${script}`,
    "or, where there is no deno.json, with",
    `  deno run --allow-net --allow-read --allow-write --allow-sys --allow-env=${ENVIRONMENT.join(",")} ${script}`,
  ].join("\n");
}
