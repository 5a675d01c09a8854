/** The peers that the data path knows, found by their number, by the index that a frame names, and by mesh address. */
import type { EpochKeys } from "../../shared/session/peer_session.ts";
import type { AeadFactory } from "./aead.ts";
import { type DataPeer, type Epoch, newEpoch, newPeer } from "./data_peer.ts";
import { AddressTable } from "./ip_packet.ts";
import type { PeerSlot } from "./plane.ts";

export class PeerTable {
  /** Those with a deadline, or perhaps with one: the others cost nothing while they are idle. */
  readonly timed = new Set<DataPeer>();
  readonly #createAead: AeadFactory;
  readonly #peers = new Map<PeerSlot, DataPeer>();
  readonly #byIndex = new Map<number, { readonly peer: DataPeer; readonly epoch: Epoch }>();
  readonly #byAddress = new AddressTable<DataPeer>();
  /** Undefined until control has said which addresses are ours, which it does before there is a TUN device to deliver to. */
  #own: AddressTable<true> | undefined;
  #nextOrder = 0;

  constructor(createAead: AeadFactory) {
    this.#createAead = createAead;
  }

  get all(): Iterable<DataPeer> {
    return this.#peers.values();
  }

  find(slot: PeerSlot): DataPeer | undefined {
    return this.#peers.get(slot);
  }

  /** The peer of this number, a new one if there is none. */
  take(slot: PeerSlot): DataPeer {
    const known = this.#peers.get(slot);
    if (known !== undefined) return known;
    const peer = newPeer(slot);
    this.#peers.set(slot, peer);
    return peer;
  }

  remove(slot: PeerSlot): void {
    const peer = this.#peers.get(slot);
    if (peer === undefined) return;
    for (const address of peer.addresses) this.#byAddress.delete(address, peer);
    for (const localIndex of peer.epochs.keys()) this.dropEpoch(slot, localIndex);
    this.timed.delete(peer);
    this.#peers.delete(slot);
  }

  setAddresses(slot: PeerSlot, addresses: readonly Uint8Array[]): void {
    const peer = this.take(slot);
    for (const address of peer.addresses) this.#byAddress.delete(address, peer);
    peer.addresses = addresses.map((address) => address.slice());
    for (const address of peer.addresses) this.#byAddress.set(address, peer);
  }

  setOwnAddresses(addresses: readonly Uint8Array[]): void {
    this.#own = new AddressTable();
    for (const address of addresses) this.#own.set(address, true);
  }

  installEpoch(peer: DataPeer, keys: EpochKeys, isActive: boolean): void {
    const epoch = newEpoch(keys, this.#createAead(keys), this.#nextOrder++, isActive);
    peer.epochs.get(keys.localIndex)?.aead.close();
    peer.epochs.set(keys.localIndex, epoch);
    this.#byIndex.set(keys.localIndex, { peer, epoch });
    if (isActive) peer.active = epoch;
  }

  dropEpoch(slot: PeerSlot, localIndex: number): void {
    const peer = this.#peers.get(slot);
    const epoch = peer?.epochs.get(localIndex);
    if (peer === undefined || epoch === undefined) return;
    peer.epochs.delete(localIndex);
    this.#byIndex.delete(localIndex);
    if (peer.active === epoch) peer.active = undefined;
    epoch.aead.close();
  }

  /** Whose frames name this index, and which of its epochs that is. */
  byIndex(index: number): { readonly peer: DataPeer; readonly epoch: Epoch } | undefined {
    return this.#byIndex.get(index);
  }

  /** Where the packet between `start` and `end` goes. */
  destinationOf(bytes: Uint8Array, start: number, end: number): DataPeer | undefined {
    return this.#byAddress.findDestination(bytes, start, end);
  }

  /** Does the packet say that it comes from this peer? It speaks for its own mesh addresses and for nobody else's. */
  isFrom(peer: DataPeer, bytes: Uint8Array, start: number, end: number): boolean {
    return this.#byAddress.findSource(bytes, start, end) === peer;
  }

  /** Is the packet for one of our addresses? Any is, until we know them. */
  isForUs(bytes: Uint8Array, start: number, end: number): boolean {
    return this.#own === undefined || this.#own.findDestination(bytes, start, end) === true;
  }

  isFromUs(bytes: Uint8Array): boolean {
    return this.#own?.findSource(bytes, 0, bytes.length) === true;
  }
}
