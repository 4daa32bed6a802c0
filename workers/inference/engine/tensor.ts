/**
 * Tensors as plain data. A *row* is one sample's tensor, without a batch axis; a *batch* is rows stacked along a new
 * axis 0. Rows are never written to once made, which lets `Stacker` recognise a batch it has built before.
 */
import { strict as assert } from "node:assert";

export type Tensor =
  | { readonly type: "float32"; readonly dims: readonly number[]; readonly data: Float32Array }
  | { readonly type: "uint8"; readonly dims: readonly number[]; readonly data: Uint8Array }
  | { readonly type: "int64"; readonly dims: readonly number[]; readonly data: BigInt64Array };

/** Tensors by the names that docs/model-bundle.md gives them. */
export type Tensors = Readonly<Record<string, Tensor>>;

export const float32 = (dims: readonly number[], data: Float32Array) => ({ type: "float32", dims, data }) as const;
export const uint8 = (dims: readonly number[], data: Uint8Array) => ({ type: "uint8", dims, data }) as const;
export const int64 = (dims: readonly number[], data: BigInt64Array) => ({ type: "int64", dims, data }) as const;

export const sizeOf = (dims: readonly number[]): number => dims.reduce((product, dim) => product * dim, 1);

const ZEROS = {
  float32: (dims: readonly number[]) => float32(dims, new Float32Array(sizeOf(dims))),
  uint8: (dims: readonly number[]) => uint8(dims, new Uint8Array(sizeOf(dims))),
  int64: (dims: readonly number[]) => int64(dims, new BigInt64Array(sizeOf(dims))),
} satisfies Record<Tensor["type"], (dims: readonly number[]) => Tensor>;

export const zeros = (type: Tensor["type"], dims: readonly number[]): Tensor => ZEROS[type](dims);

/** Row `index` of a batch, as a view. */
export function rowOf(batch: Tensor, index: number): Tensor {
  const { 0: count = 0 } = batch.dims;
  if (index >= count) throw new RangeError(`row ${index} of a batch of ${count}`);
  const dims = batch.dims.slice(1);
  const size = sizeOf(dims);
  return viewOf(batch, dims, index * size, size);
}

/** `size` numbers from `start` on, under other dimensions. */
function viewOf(tensor: Tensor, dims: readonly number[], start: number, size: number): Tensor {
  const end = start + size;
  if (tensor.type === "float32") return float32(dims, tensor.data.subarray(start, end));
  if (tensor.type === "uint8") return uint8(dims, tensor.data.subarray(start, end));
  return int64(dims, tensor.data.subarray(start, end));
}

/** Row `index` of every tensor of a batch. */
export function rowsOf(batch: Tensors, index: number): Tensors {
  return Object.fromEntries(Object.entries(batch).map(([name, tensor]) => [name, rowOf(tensor, index)]));
}

/** The numbers of a float32 tensor; a graph that answers in another type was refused when the bundle was loaded. */
export function floatsOf(tensor: Tensor): Float32Array {
  assert(tensor.type === "float32");
  return tensor.data;
}

export function bytesOf(tensor: Tensor): Uint8Array {
  assert(tensor.type === "uint8");
  return tensor.data;
}

/** Stacks rows under a name into a batch that is valid until the same name is stacked again. */
export type Stacker = (name: string, rows: readonly Tensor[]) => Tensor;

/** A buffer for rows of one shape, and the row that each place of it holds. */
interface Stacked {
  readonly type: Tensor["type"];
  readonly dims: readonly number[];
  readonly buffer: Tensor;
  readonly places: Tensor[];
}

/**
 * A stacker keeps one buffer for each name, as large as its largest batch. A place that holds the very row it is to
 * hold (the text of a batch at its next step) is not written again, and a batch of one is its row.
 */
export function createStacker(): Stacker {
  const built = new Map<string, Stacked>();
  return (name, rows) => {
    const first = rows[0];
    assert(first, `nothing to stack as ${name}`);
    const { type, dims } = first;
    if (rows.length === 1) return viewOf(first, [1, ...dims], 0, sizeOf(dims));
    const last = built.get(name);
    const fits = last && last.type === type && sameDims(last.dims, dims) && (last.buffer.dims[0] ?? 0) >= rows.length;
    const stacked = fits ? last : { type, dims, buffer: zeros(type, [rows.length, ...dims]), places: [] };
    built.set(name, stacked);

    const { buffer, places } = stacked;
    const target = new Uint8Array(buffer.data.buffer, buffer.data.byteOffset, buffer.data.byteLength);
    for (const [i, row] of rows.entries()) {
      if (places[i] === row) continue;
      assert(sameDims(row.dims, dims) && row.type === type, `rows of ${name} differ in shape`);
      target.set(new Uint8Array(row.data.buffer, row.data.byteOffset, row.data.byteLength), i * row.data.byteLength);
      places[i] = row;
    }
    const batchDims = [rows.length, ...dims];
    return viewOf(buffer, batchDims, 0, sizeOf(batchDims));
  };
}

function sameDims(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
}
