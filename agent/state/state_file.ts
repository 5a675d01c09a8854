/**
 * What the agent remembers of its mesh between starts: file `state.json`.
 *
 * Memory is the truth and the file follows: when it cannot be written, the caller gets the error, the running agent keeps what it
 * knows, and the next update writes all of it. Keys that a newer version put there are kept.
 */
import { join } from "node:path";
import * as v from "valibot";
import { readJsonIfPresent, writeAtomically } from "./atomic_file.ts";

const FILE = "state.json";
const Text = (maximum: number) => v.pipe(v.string(), v.maxLength(maximum));

const StateSchema = v.looseObject({
  schema: v.literal(1),
  /** True from the first welcome on: no join key is needed any more. */
  joined: v.boolean(),
  coordinator: v.nullable(
    v.looseObject({
      url: Text(512),
      /** Pinned at first contact; undefined until the coordinator has proved one. */
      fingerprint: v.nullable(Text(64)),
      /** All listeners that it told us of, to be tried when the first fails. */
      listeners: v.optional(v.pipe(v.array(Text(512)), v.maxLength(16))),
    }),
  ),
  name: v.nullable(Text(63)),
  meshIPv4: v.nullable(Text(15)),
  meshIPv6: v.nullable(Text(39)),
});
export type State = v.InferOutput<typeof StateSchema>;

export const EMPTY_STATE: State = {
  schema: 1,
  joined: false,
  coordinator: null,
  name: null,
  meshIPv4: null,
  meshIPv6: null,
};

export class StateFile {
  readonly path: string;
  #value: State;
  #unsaved = false;

  constructor(stateDir: string) {
    this.path = join(stateDir, FILE);
    this.#value = readState(stateDir);
  }

  get value(): State {
    return this.#value;
  }

  /** Changes some fields and saves all of them, if anything changed. */
  update(change: Partial<Omit<State, "schema">>): void {
    const before = JSON.stringify(this.#value);
    // Throws on what the next start would refuse to read.
    this.#value = v.parse(StateSchema, { ...this.#value, ...change });
    if (JSON.stringify(this.#value) !== before || this.#unsaved) this.#save();
  }

  #save(): void {
    this.#unsaved = true;
    writeAtomically(this.path, `${JSON.stringify(this.#value, null, 2)}\n`);
    this.#unsaved = false;
  }
}

/** The state of a directory, also of one that another agent holds. */
export const readState = (stateDir: string): State =>
  readJsonIfPresent(
    join(stateDir, FILE),
    StateSchema,
    "restore it from a backup, or remove it and join again with a new key",
  ) ?? EMPTY_STATE;
