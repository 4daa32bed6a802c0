/** Writes small ONNX models, so that tests can have graphs that do what they need: the few protobuf fields they use. */
export type Dim = number | "B";
type ElementType = "float32" | "uint8" | "int64" | "bool";

export interface ValueSpec {
  readonly name: string;
  readonly type: ElementType;
  readonly dims: readonly Dim[];
}

interface NodeSpec {
  readonly op: string;
  readonly in: readonly string[];
  readonly out: readonly string[];
  /** Numbers are written as ints, a GraphSpec as a subgraph. */
  readonly attributes?: Readonly<Record<string, number | GraphSpec>>;
}

export interface GraphSpec {
  readonly inputs: readonly ValueSpec[];
  readonly outputs: readonly ValueSpec[];
  readonly nodes: readonly NodeSpec[];
  readonly constants?: Readonly<
    Record<
      string,
      { readonly type: "float32" | "int64"; readonly dims: readonly number[]; readonly values: readonly number[] }
    >
  >;
}

const ELEMENT_TYPES = { float32: 1, uint8: 2, int64: 7, bool: 9 } as const satisfies Record<ElementType, number>;
const ATTRIBUTE_INT = 2;
const ATTRIBUTE_GRAPH = 5;
const IR_VERSION = 8;
const OPSET = 18;

export function writeModel(graph: GraphSpec): Buffer {
  return Buffer.concat([int(1, IR_VERSION), message(7, graphProto(graph)), message(8, int(2, OPSET))]);
}

function graphProto({ inputs, outputs, nodes, constants = {} }: GraphSpec): Buffer {
  return Buffer.concat([
    ...nodes.map((node) => message(1, nodeProto(node))),
    text(2, "graph"),
    ...Object.entries(constants).map(([name, { type, dims, values }]) =>
      message(
        5,
        Buffer.concat([
          ...dims.map((dim) => int(1, dim)),
          int(2, ELEMENT_TYPES[type]),
          text(8, name),
          message(9, rawData(type, values)),
        ]),
      ),
    ),
    ...inputs.map((input) => message(11, valueInfo(input))),
    ...outputs.map((output) => message(12, valueInfo(output))),
  ]);
}

function nodeProto({ op, in: inputs, out, attributes = {} }: NodeSpec): Buffer {
  return Buffer.concat([
    ...inputs.map((name) => text(1, name)),
    ...out.map((name) => text(2, name)),
    text(4, op),
    ...Object.entries(attributes).map(([name, value]) =>
      message(
        5,
        typeof value === "number"
          ? Buffer.concat([text(1, name), int(3, value), int(20, ATTRIBUTE_INT)])
          : Buffer.concat([text(1, name), message(6, graphProto(value)), int(20, ATTRIBUTE_GRAPH)]),
      ),
    ),
  ]);
}

function valueInfo({ name, type, dims }: ValueSpec): Buffer {
  const shape = dims.map((dim) => message(1, typeof dim === "number" ? int(1, dim) : text(2, dim)));
  const tensorType = Buffer.concat([int(1, ELEMENT_TYPES[type]), message(2, Buffer.concat(shape))]);
  return Buffer.concat([text(1, name), message(2, message(1, tensorType))]);
}

function rawData(type: "float32" | "int64", values: readonly number[]): Buffer {
  const data = type === "float32" ? Float32Array.from(values) : BigInt64Array.from(values.map(BigInt));
  return Buffer.from(data.buffer);
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest >= 0x80n; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80);
  return Buffer.from([...bytes, Number(rest)]);
}

const int = (field: number, value: number): Buffer => Buffer.concat([varint(field << 3), varint(value)]);
const message = (field: number, body: Buffer): Buffer =>
  Buffer.concat([varint((field << 3) | 2), varint(body.length), body]);
const text = (field: number, value: string): Buffer => message(field, Buffer.from(value));
