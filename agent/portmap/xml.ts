/**
 * A small strict reader of XML, for descriptions of devices and SOAP answers: elements and text, nothing else.
 *
 * A document type is refused, so there are no entities to expand and nothing to fetch; only the five predefined entities and character
 * references below the surrogates are read. Attributes are passed over, prefixes are dropped.
 */

/** Real descriptions have some 150 elements, seven deep. */
const MAX_ELEMENTS = 2000;
const MAX_DEPTH = 32;
const MAX_TEXT = 64 * 1024;

export interface XmlElement {
  /** Without its prefix. */
  readonly name: string;
  readonly children: readonly XmlElement[];
  /** Its own, trimmed. */
  readonly text: string;
}

interface OpenElement {
  readonly tag: string;
  readonly name: string;
  readonly children: XmlElement[];
  text: string;
}

/** A token at a time: comment, processing instruction, end tag, start tag, or text. No alternative can match nothing. */
const TOKEN =
  /<!--[^]*?-->|<\?[^]*?\?>|<\/([A-Za-z_][\w.:-]{0,99})\s*>|<([A-Za-z_][\w.:-]{0,99})((?:\s+[\w.:-]{1,100}\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>|([^<]+)/y;

/** The root element. Undefined when this is no XML, when it ends early, or when it asks for more than a reader should give. */
export function parseXml(text: string): XmlElement | undefined {
  if (text.length > MAX_TEXT) return undefined;
  const source = text.charCodeAt(0) === 0xfe_ff ? text.slice(1) : text;
  const open: OpenElement[] = [];
  let root: XmlElement | undefined;
  let count = 0;
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < source.length) {
    const token = TOKEN.exec(source);
    if (token === null) return undefined;
    const [, endTag, startTag, , slash, characters] = token;
    const parent = open.at(-1);
    if (startTag !== undefined) {
      if (++count > MAX_ELEMENTS || open.length >= MAX_DEPTH || (parent === undefined && root !== undefined)) {
        return undefined;
      }
      const name = startTag.slice(startTag.lastIndexOf(":") + 1);
      open.push({ tag: startTag, name, children: [], text: "" });
    }
    if (endTag !== undefined || slash === "/") {
      const ended = open.pop();
      if (ended === undefined || (endTag !== undefined && ended.tag !== endTag)) return undefined;
      const element = { name: ended.name, children: ended.children, text: ended.text.trim() };
      const above = open.at(-1);
      if (above === undefined) root = element;
      else above.children.push(element);
    }
    if (characters === undefined) continue;
    const decoded = decodeEntities(characters);
    if (decoded === undefined) return undefined;
    if (parent !== undefined) parent.text += decoded;
    else if (decoded.trim() !== "") return undefined;
  }
  return open.length === 0 ? root : undefined;
}

/** Every element of this name, at any depth, in the order of the document. */
export function elementsNamed(element: XmlElement, name: string): readonly XmlElement[] {
  return [
    ...(element.name === name ? [element] : []),
    ...element.children.flatMap((child) => elementsNamed(child, name)),
  ];
}

/** Text of the first element of this name. */
export const textOf = (element: XmlElement, name: string): string | undefined => elementsNamed(element, name)[0]?.text;

export const escapeXml = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

function decodeEntities(text: string): string | undefined {
  if (!text.includes("&")) return text;
  let isValid = true;
  const decoded = text.replaceAll(/&(#x[0-9a-f]{1,4}|#\d{1,5}|[a-z]{2,4});|&/gi, (_, name?: string) => {
    const code = name?.startsWith("#x") === true ? Number.parseInt(name.slice(2), 16) : Number(name?.slice(1));
    const character = name?.startsWith("#") === true ? characterOf(code) : ENTITIES[name ?? ""];
    if (character === undefined) isValid = false;
    return character ?? "";
  });
  return isValid ? decoded : undefined;
}

const characterOf = (code: number): string | undefined =>
  code >= 0x20 && code < 0xd8_00 ? String.fromCharCode(code) : undefined;
