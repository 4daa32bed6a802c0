/**
 * Reads a `.npy` array of actions (format versions 1 to 3) into float32, row-major.
 * The layout is that of numpy.lib.format: magic, version, header length, a Python dict literal, raw elements.
 * Everything a model cannot take is refused with what was expected and what came; nothing else is ever thrown.
 */
import { ApiError } from "#contract/errors.ts";

const MAGIC = Buffer.from("\x93NUMPY", "latin1");
/** As numpy itself refuses longer ones; a header is 118 bytes for any array that we take. */
const HEADER_BYTES_MAX = 10_000;
const DIMENSIONS_MAX = 32;

/** What the array has to be. */
export interface ActionsShape {
  readonly action_dim: number;
  readonly chunk_size: number;
  readonly actions_max: number;
}

export interface Actions {
  /** Number of actions, T. */
  readonly count: number;
  /** `[count, action_dim]`, row-major. */
  readonly values: Float32Array;
}

/** Throws ApiError(invalid_input) on anything but `(T, action_dim)` finite numbers; `part` names the form part. */
export function parseActions(file: Buffer, expected: ActionsShape, part: string): Actions {
  const refuse = (problem: string): never => {
    throw new ApiError("invalid_input", `${part}: ${problem}`);
  };
  const { header, data } = splitFile(file, refuse);
  const { descr, fortranOrder, shape } = parseHeader(header, refuse);
  const element = elementOf(descr, refuse);
  const count = checkShape(shape, expected, refuse);

  const bytesExpected = count * expected.action_dim * element.bytes;
  if (data.length !== bytesExpected) {
    refuse(
      `shape ${shapeText(shape)} of ${descr} takes ${bytesExpected} bytes, but ${data.length} follow the header ` +
        (data.length < bytesExpected ? "(the file is truncated)" : "(there are trailing bytes)"),
    );
  }
  return { count, values: readElements(data, element, fortranOrder, count, expected.action_dim, refuse) };
}

type Refuse = (problem: string) => never;

function splitFile(file: Buffer, refuse: Refuse): { header: string; data: Buffer } {
  if (file[0] === 0x80) refuse("expected a .npy file, got a Python pickle; save the array with numpy.save");
  if (file.subarray(0, 2).toString("latin1") === "PK") {
    refuse("expected a .npy file, got a zip archive (.npz); save one array with numpy.save");
  }
  if (file.length < 10 || !file.subarray(0, 6).equals(MAGIC)) {
    refuse(`expected a .npy file (it begins with \\x93NUMPY), got ${file.length} other bytes`);
  }
  const version = file.readUInt8(6);
  if (version < 1 || version > 3) refuse(`expected .npy format version 1, 2 or 3, got ${version}`);
  const headerStart = version === 1 ? 10 : 12;
  if (file.length < headerStart) refuse("the .npy header is truncated");
  const headerBytes = version === 1 ? file.readUInt16LE(8) : file.readUInt32LE(8);
  if (headerBytes > HEADER_BYTES_MAX) {
    refuse(`the .npy header takes ${headerBytes} bytes, expected at most ${HEADER_BYTES_MAX}`);
  }
  const headerEnd = headerStart + headerBytes;
  if (file.length < headerEnd) refuse("the .npy header is truncated");
  return { header: file.subarray(headerStart, headerEnd).toString("latin1"), data: file.subarray(headerEnd) };
}

interface Header {
  readonly descr: string;
  readonly fortranOrder: boolean;
  readonly shape: readonly number[];
}

/** Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (48, 2), }`: this literal alone, never evaluated. */
function parseHeader(text: string, refuse: Refuse): Header {
  let at = 0;
  const take = (pattern: RegExp): string | null => {
    const sticky = new RegExp(pattern, "y");
    sticky.lastIndex = at;
    const match = sticky.exec(text);
    if (!match) return null;
    at = sticky.lastIndex;
    return match[1] ?? match[0];
  };
  const unreadable = (): never => refuse("the .npy header is not the dictionary that numpy writes");

  let descr: string | undefined;
  let fortranOrder: boolean | undefined;
  let shape: number[] | undefined;

  if (take(/\s*\{\s*/) === null) unreadable();
  while (take(/\}\s*/) === null) {
    const key = take(/'(descr|fortran_order|shape)'\s*:\s*/) ?? unreadable();
    if (key === "descr") {
      if (take(/\[/) !== null) refuse("expected an array of plain numbers, got a structured dtype");
      descr = take(/'([^'\\]{1,40})'/) ?? unreadable();
    } else if (key === "fortran_order") {
      fortranOrder = (take(/True|False/) ?? unreadable()) === "True";
    } else {
      const tuple = take(/\(\s*((?:\d{1,15}L?\s*,\s*)*(?:\d{1,15}L?\s*)?)\)/) ?? unreadable();
      shape = (tuple.match(/\d+/g) ?? []).map(Number);
      if (shape.length > DIMENSIONS_MAX) refuse(`expected 2 dimensions, got ${shape.length}`);
    }
    take(/\s*,?\s*/);
  }
  if (at !== text.length || descr === undefined || fortranOrder === undefined || shape === undefined) {
    return unreadable();
  }
  return { descr, fortranOrder, shape };
}

interface Element {
  readonly bytes: number;
  read(view: DataView, offset: number): number;
}

/** Readers by kind and size; `littleEndian` is ignored by the one-byte kinds. */
const READERS: Readonly<Record<string, (view: DataView, offset: number, littleEndian: boolean) => number>> = {
  f2: (view, offset, little) => halfToNumber(view.getUint16(offset, little)),
  f4: (view, offset, little) => view.getFloat32(offset, little),
  f8: (view, offset, little) => view.getFloat64(offset, little),
  i1: (view, offset) => view.getInt8(offset),
  i2: (view, offset, little) => view.getInt16(offset, little),
  i4: (view, offset, little) => view.getInt32(offset, little),
  i8: (view, offset, little) => Number(view.getBigInt64(offset, little)),
  u1: (view, offset) => view.getUint8(offset),
  u2: (view, offset, little) => view.getUint16(offset, little),
  u4: (view, offset, little) => view.getUint32(offset, little),
  u8: (view, offset, little) => Number(view.getBigUint64(offset, little)),
};

const REFUSED_KINDS: Readonly<Record<string, string>> = {
  O: "Python objects",
  V: "structured or void data",
  S: "byte strings",
  U: "strings",
  b: "booleans",
  c: "complex numbers",
  M: "dates",
  m: "time spans",
};

function elementOf(descr: string, refuse: Refuse): Element {
  const match = /^([<>|=]?)([a-zA-Z])(\d{0,4})(.*)$/.exec(descr);
  const [, order = "", kind = "", size = "", rest = ""] = match ?? [];
  const read = rest === "" && Object.hasOwn(READERS, kind + size) ? READERS[kind + size] : undefined;
  if (!read) {
    const what = REFUSED_KINDS[kind];
    return refuse(
      `expected numbers (float32; float16, float64 and integers are cast), got ${what ? `${what}, ` : ""}dtype ${descr}`,
    );
  }
  const littleEndian = order !== ">";
  return { bytes: Number(size), read: (view, offset) => read(view, offset, littleEndian) };
}

function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * 2 ** -24 * fraction;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
}

function checkShape(shape: readonly number[], expected: ActionsShape, refuse: Refuse): number {
  const { action_dim, chunk_size, actions_max } = expected;
  const [count = 0, width] = shape;
  const got = `got shape ${shapeText(shape)}`;
  if (shape.length !== 2 || width !== action_dim) refuse(`expected shape (T, ${action_dim}), ${got}`);
  if (count < 1 || count % chunk_size !== 0) {
    refuse(`expected shape (T, ${action_dim}) with T a positive multiple of ${chunk_size}, ${got}`);
  }
  if (count > actions_max) refuse(`expected shape (T, ${action_dim}) with T at most ${actions_max}, ${got}`);
  return count;
}

/** As Python writes a tuple. */
function shapeText(shape: readonly number[]): string {
  return shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
}

function readElements(
  data: Buffer,
  element: Element,
  fortranOrder: boolean,
  rows: number,
  columns: number,
  refuse: Refuse,
): Float32Array {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const values = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const index = fortranOrder ? column * rows + row : row * columns + column;
      const value = Math.fround(element.read(view, index * element.bytes));
      if (!Number.isFinite(value)) {
        const got = Number.isNaN(value) ? "NaN" : "infinity, or a number beyond float32";
        refuse(`expected finite numbers, got ${got} at [${row}, ${column}]`);
      }
      values[row * columns + column] = value;
    }
  }
  return values;
}

/** The wire form of actions inside the system: little-endian float32, candidates one after the other. */
export function actionsBytes(candidates: readonly Actions[]): Buffer {
  const total = candidates.reduce((sum, { values }) => sum + values.length, 0);
  const bytes = Buffer.alloc(total * 4);
  let offset = 0;
  for (const { values } of candidates) {
    for (const value of values) offset = bytes.writeFloatLE(value, offset);
  }
  return bytes;
}
