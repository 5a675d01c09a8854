/** Everything about streams that a peer, or a program here, could otherwise grow. Both ends know the numbers marked "protocol". */

/** Protocol: a stream may send this much before it is given more. */
export const INITIAL_STREAM_WINDOW = 64 * 1024;
/** Protocol: all streams together may send this much before they are given more. Also the most that waits unread here, per peer. */
export const SESSION_WINDOW = 32 * 1024 * 1024;
/** A stream that is read as fast as it comes grows to this, half a gigabit a second at 130 ms. */
export const MAX_STREAM_WINDOW = 8 * 1024 * 1024;
/** Protocol: streams that one side may have open with the other. */
export const MAX_STREAMS = 4096;
/** Streams of a peer whose program here has not answered yet. */
export const MAX_HALF_OPEN = 512;
/** Streams of ours that the peer's programs have not answered yet; more wait here, in order. Half of what the peer takes, since it may hear of a
 * new one before it hears that we gave up an earlier one. */
export const MAX_OPENING = MAX_HALF_OPEN / 2;
/** Beyond `MAX_STREAMS` a stream is refused, which takes a little memory too: from here on not even that. */
export const MAX_REFUSING = 2 * MAX_STREAMS;
/** Gaps in the numbers of a peer's streams; an honest one leaves none for long. */
export const MAX_STREAM_GAPS = 1024;
/** Memory for bytes that came before those in front of them. */
export const MAX_HELD_COST = 2 * SESSION_WINDOW;
/** Bytes of one stream that wait to be sent before its program has to pause; less when many streams share `MAX_UNSENT_BYTES`. */
export const MAX_STREAM_UNSENT_BYTES = 256 * 1024;
export const MIN_STREAM_UNSENT_BYTES = 16 * 1024;
export const MAX_UNSENT_BYTES = 16 * 1024 * 1024;
/** Datagrams that wait for the window: the oldest go first, since a late one is of no use. */
export const MAX_QUEUED_DATAGRAM_BYTES = 256 * 1024;
