/**
 * Which identity a peer's name stands for, and whom the operator refuses: file `trust.json`.
 *
 * The first id seen for a name is pinned. Another id under that name is `changed` until the operator says `trust`. A block holds
 * for the name and for the id it had, so that a renamed peer stays blocked.
 */
import { join } from "node:path";
import * as v from "valibot";
import { isPeerId, type PeerId } from "../../shared/session/identity.ts";
import { readJsonIfPresent, writeAtomically } from "./atomic_file.ts";

const FILE = "trust.json";
/** Pins that are kept; a coordinator that invents names cannot grow the file beyond it. */
export const MAX_PINS = 4096;
/** The signalling message that carries blocks names at most 1000 peers. */
export const MAX_BLOCKS = 1000;

const Name = v.pipe(v.string(), v.maxLength(63));
const Id = v.pipe(
  v.string(),
  v.check((text) => isPeerId(text)),
  v.transform((text) => text as PeerId),
);
// Lists and not objects, since a name may be "__proto__".
const TrustSchema = v.object({
  schema: v.literal(1),
  pins: v.pipe(v.array(v.object({ name: Name, id: Id })), v.maxLength(MAX_PINS)),
  blocked: v.pipe(v.array(v.object({ name: Name, id: v.nullable(Id) })), v.maxLength(MAX_BLOCKS)),
});

export type Trust = "new" | "pinned" | "changed" | "blocked";

export class TrustStore {
  readonly path: string;
  readonly #pins = new Map<string, PeerId>();
  readonly #blocked = new Map<string, PeerId | undefined>();
  /** The id last refused under a pinned name: what `trust` will accept. */
  readonly #refused = new Map<string, PeerId>();
  #hasUnsaved = false;

  constructor(stateDir: string) {
    this.path = join(stateDir, FILE);
    const saved = readJsonIfPresent(
      this.path,
      TrustSchema,
      "restore it from a backup, or remove it, which forgets every pinned and blocked peer",
    );
    for (const { name, id } of saved?.pins ?? []) this.#pins.set(name, id);
    for (const { name, id } of saved?.blocked ?? []) this.#blocked.set(name, id ?? undefined);
  }

  /** What we think of this id under this name. Changes nothing on disk. */
  check(name: string, id: PeerId): Trust {
    if (this.#blocked.has(name)) return "blocked";
    for (const blockedId of this.#blocked.values()) if (blockedId === id) return "blocked";
    const pinned = this.#pins.get(name);
    if (pinned === undefined) return "new";
    if (pinned === id) return "pinned";
    if (this.#refused.size < MAX_PINS) this.#refused.set(name, id);
    return "changed";
  }

  pinnedId(name: string): PeerId | undefined {
    return this.#pins.get(name);
  }

  /**
   * Pins a new name after its peer has authenticated. False, and nothing changes, when the name stands for another id or the
   * store is full: the peer is then refused.
   */
  pin(name: string, id: PeerId): boolean {
    const isOurs = this.pinUnsaved(name, id);
    this.save();
    return isOurs;
  }

  /** As `pin`, for many at once: the file is written by the `save` that follows. */
  pinUnsaved(name: string, id: PeerId): boolean {
    const pinned = this.#pins.get(name);
    if (pinned !== undefined) return pinned === id;
    if (this.#pins.size >= MAX_PINS) return false;
    this.#pins.set(name, id);
    this.#hasUnsaved = true;
    return true;
  }

  /** Writes what has been pinned since the file was last written, if anything. */
  save(): void {
    if (this.#hasUnsaved) this.#save();
  }

  /**
   * The operator accepts this peer: unblocks it, and pins `id` if given, else the id that was last refused. Returns the id that
   * the name now stands for; undefined when none was ever seen, which leaves only the block lifted.
   */
  trust(name: string, id?: PeerId): PeerId | undefined {
    const accepted = id ?? this.#refused.get(name) ?? this.#pins.get(name) ?? this.#blocked.get(name);
    this.#blocked.delete(name);
    this.#refused.delete(name);
    if (accepted !== undefined) {
      for (const [other, blockedId] of this.#blocked) if (blockedId === accepted) this.#blocked.delete(other);
      if (this.#pins.has(name) || this.#pins.size < MAX_PINS) this.#pins.set(name, accepted);
    }
    this.#save();
    return accepted;
  }

  /** The operator refuses this peer. False when there is no room for one more block. */
  block(name: string, id?: PeerId): boolean {
    if (!this.#blocked.has(name) && this.#blocked.size >= MAX_BLOCKS) return false;
    this.#blocked.set(name, id ?? this.#pins.get(name));
    this.#save();
    return true;
  }

  /** Ids to be refused at the coordinator too. */
  blockedIds(): PeerId[] {
    return [...new Set([...this.#blocked.values()].filter((id) => id !== undefined))];
  }

  #save(): void {
    const pins = [...this.#pins].map(([name, id]) => ({ name, id }));
    const blocked = [...this.#blocked].map(([name, id]) => ({ name, id: id ?? null }));
    writeAtomically(this.path, `${JSON.stringify({ schema: 1, pins, blocked }, null, 2)}\n`);
    this.#hasUnsaved = false;
  }
}
