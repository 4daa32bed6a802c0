/** Requests in the order of their arrival, as columns: millions of them are looked at several times. */
import { Type, type Static } from "typebox";
import { Value } from "typebox/value";

export interface Trace {
  readonly length: number;
  /** Seconds from the beginning, never falling. */
  readonly at_s: Float64Array;
  /** Frames that the engine generates: candidates times actions. */
  readonly frames: Float64Array;
  /** 1: somebody waits for it. 0: bulk. */
  readonly realtime: Uint8Array;
  /** Indices into `customers`. */
  readonly customer: Uint32Array;
  readonly customers: readonly string[];
}

const Line = Type.Object(
  {
    at_s: Type.Number({ minimum: 0 }),
    frames: Type.Integer({ minimum: 1, maximum: 1_000_000 }),
    k: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000 })),
    lane: Type.Optional(Type.Union([Type.Literal("realtime"), Type.Literal("bulk")])),
    customer: Type.Optional(Type.String()),
  },
  { additionalProperties: false },
);
const EXPECTED = `expected {"at_s": 0.5, "frames": 49} with, if need be, "k": 8, "lane": "realtime" or "bulk" and "customer": "a"`;

/** A trace that cannot be read; the message says where and what was expected. */
export class TraceError extends Error {
  override readonly name = "TraceError";
}

/** JSON lines, in any order. Throws TraceError. */
export function parseTrace(text: string): Trace {
  const requests = text.split("\n").flatMap((line, index) => (line.trim() === "" ? [] : [parseLine(line, index + 1)]));
  if (requests.length === 0) throw new TraceError(`there is no request in it; ${EXPECTED} on each line`);
  return traceOf(
    requests.map(({ at_s, frames, k = 1, lane = "realtime", customer = "customer" }) => ({
      at_s,
      frames: frames * k,
      realtime: lane === "realtime",
      customer,
    })),
  );
}

function parseLine(text: string, line: number): Static<typeof Line> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new TraceError(`line ${line} is no JSON; ${EXPECTED}`, { cause: error });
  }
  if (Value.Check(Line, value)) return value;
  const [problem] = Value.Errors(Line, value);
  const where = problem?.instancePath.slice(1) ?? "";
  throw new TraceError(`line ${line}: ${where} ${problem?.message ?? "is none"}; ${EXPECTED}`.replace(":  ", ": "));
}

export interface Request {
  readonly at_s: number;
  /** Of all candidates. */
  readonly frames: number;
  readonly realtime: boolean;
  readonly customer: string;
}

/** In any order. */
export function traceOf(requests: readonly Request[]): Trace {
  const sorted = requests.toSorted((a, b) => a.at_s - b.at_s);
  const customers = [...new Set(sorted.map(({ customer }) => customer))];
  const indexOf = new Map(customers.map((customer, index) => [customer, index]));
  return {
    length: sorted.length,
    at_s: Float64Array.from(sorted, ({ at_s }) => at_s),
    frames: Float64Array.from(sorted, ({ frames }) => frames),
    realtime: Uint8Array.from(sorted, ({ realtime }) => Number(realtime)),
    customer: Uint32Array.from(sorted, ({ customer }) => indexOf.get(customer) ?? 0),
    customers,
  };
}

export function framesOf({ frames }: Trace): number {
  return frames.reduce((sum, each) => sum + each, 0);
}
