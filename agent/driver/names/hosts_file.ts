/**
 * Keeps the members of the mesh in /etc/hosts, where the machine has no resolver that takes a domain of its own.
 *
 * The bytes before the agent's block are never written: a crash in the middle can spoil the block, and no line of anybody else. The file
 * is changed in place, since containers mount it, and a mount cannot be renamed over.
 */
import {
  closeSync,
  readdirSync,
  statSync,
  constants,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readlinkSync,
  writeSync,
} from "node:fs";
import { hasBlock, withBlock, withoutBlock } from "../../dns/hosts_block.ts";
import type { Member } from "../../dns/zone.ts";

const HOSTS_FILE = "/etc/hosts";
const NAMED_NAMESPACES = "/run/netns";

export class HostsFile {
  readonly #path: string;

  constructor(path = HOSTS_FILE) {
    this.#path = path;
  }

  /** Throws what the system says when the file cannot be written. */
  write(members: readonly Member[]): void {
    this.#change((text) => withBlock(text, members));
  }

  /** Also what an agent that was killed has left. Does nothing, and needs no permission, where there is no block. */
  clear(): void {
    this.#change((text) => (hasBlock(text) ? withoutBlock(text) : text));
  }

  #change(edit: (text: string) => string): void {
    // As bytes that survive: the file may have comments in any encoding.
    const before = readFileSync(this.#path, "latin1");
    const after = edit(before);
    if (after === before) return;
    let same = 0;
    while (same < before.length && before[same] === after[same]) same++;
    const file = openSync(this.#path, constants.O_WRONLY);
    try {
      const bytes = Buffer.from(after.slice(same), "latin1");
      for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at, bytes.length - at, same + at);
      ftruncateSync(file, same + bytes.length);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
  }
}

/**
 * Is /etc/hosts about this network namespace? One made by `ip netns` sees the file of the machine, unless it has been given another one:
 * its names would be wrong for everybody else who reads them.
 */
export function isHostsFileOurs(): boolean {
  return hasOwnHostsFile() || !(isNamedNamespace() || isOtherThanInit());
}

/** Containers, and namespaces with a file in /etc/netns, have it mounted. */
const hasOwnHostsFile = (): boolean =>
  orElse(false, () => readFileSync("/proc/self/mountinfo", "utf8").includes(` ${HOSTS_FILE} `));

/** `ip netns` keeps a file for each: of the same inode as the namespace that it stands for. */
const isNamedNamespace = (): boolean =>
  orElse(false, () => {
    const own = statSync("/proc/self/ns/net").ino;
    return readdirSync(NAMED_NAMESPACES).some((name) => statSync(`${NAMED_NAMESPACES}/${name}`).ino === own);
  });

/** Where we may not look at process 1, nobody has moved us away from it by hand either: that takes more rights. */
const isOtherThanInit = (): boolean =>
  orElse(false, () => readlinkSync("/proc/self/ns/net") !== readlinkSync("/proc/1/ns/net"));

function orElse<T>(fallback: T, read: () => T): T {
  try {
    return read();
  } catch {
    return fallback;
  }
}
