/** `jump-key add|list|remove`: works on the state directory, and holds for the running agent at once. */
import { existsSync, readFileSync } from "node:fs";
import { assertNever } from "../../shared/assert.ts";
import { printable } from "../log.ts";
import { readIfPresent } from "../state/atomic_file.ts";
import { addJumpKeys, type JumpKey, readJumpKeys, removeJumpKeys } from "../state/jump_keys.ts";
import { stateDirOf } from "../state/state_dir.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import type { Host } from "./host.ts";
import type { JumpKeyOptions } from "./invocation.ts";

const STANDARD_INPUT = 0;

export function runJumpKey({ action, json, stateDir: chosen }: JumpKeyOptions, host: Host): number {
  const stateDir = stateDirOf(chosen, host.account);
  if (!existsSync(stateDir)) {
    throw new UserError(
      EXIT.badConfiguration,
      `There is no agent's state in ${stateDir}; join a mesh first, with "up"`,
    );
  }
  switch (action.action) {
    case "add": {
      const text = action.file === "-" ? readFileSync(STANDARD_INPUT, "utf8") : readIfPresent(action.file);
      if (text === undefined) throw new UserError(EXIT.badConfiguration, `The file ${action.file} does not exist`);
      const added = addJumpKeys(stateDir, text);
      host.out(added.length === 0 ? "That key was admitted before\n" : lines("Admitted", added));
      return EXIT.ok;
    }
    case "remove": {
      const removed = removeJumpKeys(stateDir, action.which);
      if (removed.length > 0) host.out(lines("Removed", removed));
      else
        throw new UserError(
          EXIT.failed,
          `No key is called "${action.which}"; "tunnelmesh-agent jump-key list" shows them`,
        );
      return EXIT.ok;
    }
    case "list": {
      const keys = readJumpKeys(stateDir);
      if (json) {
        const all = keys.map(({ type, fingerprint, comment }) => ({ type, fingerprint, comment }));
        host.out(`${JSON.stringify({ schema: 1, keys: all }, null, 2)}\n`);
      } else host.out(keys.length === 0 ? "Nobody may jump to this machine\n" : lines("", keys));
      return EXIT.ok;
    }
    default:
      return assertNever(action);
  }
}

const lines = (what: string, keys: readonly JumpKey[]): string =>
  keys
    .map(({ fingerprint, comment, type }) => `${what} ${fingerprint} ${printable(comment)} (${type})\n`.trimStart())
    .join("");
