/**
 * Who is served next inside the simulator: realtime before bulk, and inside a lane by the dispatcher's own fair order
 * (scheduler/dispatch/fair.ts), all customers with the same weight.
 */
import { type CustomerQueue, type FairRow, type FairState, IDLE, inFairOrder, served } from "../dispatch/fair.ts";
import type { Trace } from "./trace.ts";

export interface Line {
  push(request: number): void;
  /** Index of the request that goes next, or null when nobody waits. */
  take(): number | null;
  size(): number;
}

/** A customer's waiting requests. */
interface Waiting {
  readonly requests: number[];
  /** Those before it have gone. */
  head: number;
  queue: CustomerQueue<FairRow>;
}

/** Room that gone requests may take before it is given back. */
const GONE_MAX = 65_536;

export function createLine(trace: Trace): Line {
  const lanes = [createLane(trace), createLane(trace)];
  let size = 0;
  return {
    push(request) {
      lanes[trace.realtime[request] === 1 ? 0 : 1]?.push(request);
      size += 1;
    },
    take() {
      if (size === 0) return null;
      size -= 1;
      return lanes[0]?.take() ?? lanes[1]?.take() ?? null;
    },
    size: () => size,
  };
}

function createLane(trace: Trace): Omit<Line, "size"> {
  const waiting = new Map<number, Waiting>();
  let state: FairState = IDLE;

  const rowOf = (request: number): FairRow => ({
    id: String(request),
    customer_id: trace.customers[trace.customer[request] ?? 0] ?? "",
    queued_ms: (trace.at_s[request] ?? 0) * 1000,
    frames: trace.frames[request] ?? 0,
    weight: 1,
  });

  /** Of those who wait nothing but the first of each can be next. */
  const queueOf = (request: number): CustomerQueue<FairRow> => ({ rows: [rowOf(request)], more: true });

  function next(): FairRow | undefined {
    const [first] = waiting.values();
    if (waiting.size === 1) return first?.queue.rows[0];
    const queues = Array.from(waiting.values(), ({ queue }) => queue);
    return inFairOrder(state, queues).next().value ?? undefined;
  }

  return {
    push(request) {
      const customer = trace.customer[request] ?? 0;
      const own = waiting.get(customer);
      if (own) own.requests.push(request);
      else waiting.set(customer, { requests: [request], head: 0, queue: queueOf(request) });
    },
    take() {
      const row = next();
      if (row === undefined) return null;
      state = served(state, [row]);
      const request = Number(row.id);
      const customer = trace.customer[request] ?? 0;
      const own = waiting.get(customer);
      if (own) dropFirst(customer, own);
      return request;
    },
  };

  function dropFirst(customer: number, own: Waiting): void {
    own.head += 1;
    if (own.head > GONE_MAX) {
      own.requests.splice(0, own.head);
      own.head = 0;
    }
    const following = own.requests[own.head];
    if (following === undefined) waiting.delete(customer);
    else own.queue = queueOf(following);
  }
}
