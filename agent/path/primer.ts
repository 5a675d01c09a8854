/**
 * Packets that open our own NAT and are not meant to arrive.
 *
 * A router whose own stack takes packets that nobody asked for (Linux with an open WAN input) keeps an entry for each: when the inside
 * host then sends to that very address, its port is taken and it gets another one, which the peer does not know. Two such routers at no
 * distance fail in four of five cases. So our mapping is made before any packet of the peer's can be there, by one that passes our router
 * and dies before the peer's.
 */

/** Past a home router and a carrier's NAT, and short of the peer's: paths between two networks have five hops and more. */
export const PRIMER_HOPS = 4;
