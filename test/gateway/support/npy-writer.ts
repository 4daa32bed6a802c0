/** Writes .npy files as numpy does, in every layout that the gateway meets; independent of its reader. */
export interface NpyOptions {
  /** Kind and bytes, `f4` by default. */
  readonly dtype?: string;
  readonly bigEndian?: boolean;
  readonly fortranOrder?: boolean;
  readonly version?: 1 | 2 | 3;
}

/** `values` in row-major order of `shape`, whatever order the file gets. */
export function npy(values: readonly number[], shape: readonly number[], options: NpyOptions = {}): Buffer {
  const { dtype = "f4", bigEndian = false, fortranOrder = false, version = 1 } = options;
  const order = dtype.endsWith("1") ? "|" : bigEndian ? ">" : "<";
  const header = npyHeader(`'${order}${dtype}'`, shape, { fortranOrder, version });
  const [rows = 1, columns = 1] = shape;
  const ordered = fortranOrder
    ? values.map((_value, index) => values[(index % rows) * columns + Math.floor(index / rows)] ?? 0)
    : values;
  return Buffer.concat([header, ...ordered.map((value) => encode(value, dtype, bigEndian))]);
}

/** `descr` as Python text, so that a test can write one that no array of numbers has. */
export function npyHeader(
  descr: string,
  shape: readonly number[],
  { fortranOrder = false, version = 1 }: { fortranOrder?: boolean; version?: number } = {},
): Buffer {
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
  const dict = `{'descr': ${descr}, 'fortran_order': ${fortranOrder ? "True" : "False"}, 'shape': ${tuple}, }`;
  const lengthBytes = version === 1 ? 2 : 4;
  const unpadded = 8 + lengthBytes + dict.length + 1;
  const text = `${dict}${" ".repeat((64 - (unpadded % 64)) % 64)}\n`;
  const length = Buffer.alloc(lengthBytes);
  if (version === 1) length.writeUInt16LE(text.length);
  else length.writeUInt32LE(text.length);
  return Buffer.concat([
    Buffer.from([0x93]),
    Buffer.from("NUMPY"),
    Buffer.from([version, 0]),
    length,
    Buffer.from(text),
  ]);
}

function encode(value: number, dtype: string, bigEndian: boolean): Buffer {
  const bytes = Number(dtype.slice(1));
  const view = new DataView(new ArrayBuffer(bytes));
  const little = !bigEndian;
  switch (dtype) {
    case "f2":
      view.setUint16(0, halfBits(value), little);
      break;
    case "f4":
      view.setFloat32(0, value, little);
      break;
    case "f8":
      view.setFloat64(0, value, little);
      break;
    case "i1":
    case "u1":
      view.setUint8(0, value & 0xff);
      break;
    case "i2":
    case "u2":
      view.setUint16(0, value & 0xffff, little);
      break;
    case "i4":
    case "u4":
      view.setUint32(0, value >>> 0, little);
      break;
    case "i8":
    case "u8":
      view.setBigInt64(0, BigInt(value), little);
      break;
    default:
      throw new Error(`no encoder for ${dtype}`);
  }
  return Buffer.from(view.buffer);
}

/** Exact for the numbers a half can hold, which are the ones the tests use. */
function halfBits(value: number): number {
  if (value === 0) return 0;
  if (Number.isNaN(value)) return 0x7e00;
  const sign = value < 0 ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (magnitude === Infinity) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude)));
  const fraction = magnitude / 2 ** exponent;
  return fraction < 1
    ? sign | Math.round(magnitude * 2 ** 24)
    : sign | ((exponent + 15) << 10) | Math.round((fraction - 1) * 1024);
}

/** `count` actions of the test models, all different and inside float16. */
export const someActions = (count: number, dim: number): number[] =>
  Array.from({ length: count * dim }, (_unused, index) => (index % 64) / 8 - 4);

export const actionsFile = (count: number, dim: number, options?: NpyOptions): Buffer =>
  npy(someActions(count, dim), [count, dim], options);
