/**
 * When a request's samples go to the engine: three policies in front of the same engine. Each resolves when the request is
 * done. The two that wait take requests in the order of their arrival, as the servers do that they stand for.
 */
import type { MixedRequest } from "./mix.ts";

/**
 * Has the engine dream some candidates of a request, together. `onFrame` is called at each frame; resolves when all are
 * done, rejects when the engine fails.
 */
export type Submit = (
  request: MixedRequest,
  what: { readonly candidates: readonly number[]; readonly lanes: "own" | "one" },
  onFrame: () => void,
) => Promise<void>;

export type Policy = (request: MixedRequest, onFrame: () => void) => Promise<void>;

export const POLICIES = {
  "continuous batching": continuous,
  "batches run to completion": runToCompletion,
  "no batching": oneByOne,
} as const satisfies Record<string, (submit: Submit, samplesMax: number) => Policy>;
export type PolicyName = keyof typeof POLICIES;
/** In the order in which they are named above. */
export const POLICY_NAMES = Object.keys(POLICIES) as PolicyName[]; // its keys are what its type says

/** Every request joins at once; the engine decides from step to step. */
function continuous(submit: Submit): Policy {
  return (request, onFrame) => submit(request, { candidates: candidatesOf(request), lanes: "own" }, onFrame);
}

interface Waiting {
  readonly request: MixedRequest;
  readonly onFrame: () => void;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Dynamic batching: while nothing runs, the next requests that have room together start together, and nobody else does
 * until the last of them is done. Kinder than servers are: a request has its frames and its answer when it is done itself,
 * none is padded to the longest, and K candidates share one encode.
 */
function runToCompletion(submit: Submit, samplesMax: number): Policy {
  return inTurn((waiting) => {
    let samples = 0;
    const batch: Waiting[] = [];
    for (let next = waiting[0]; next && (samples === 0 || samples + next.request.k <= samplesMax); [next] = waiting) {
      samples += next.request.k;
      batch.push(next);
      waiting.shift();
    }
    return batch.map((one) => {
      const done = submit(one.request, { candidates: candidatesOf(one.request), lanes: "one" }, one.onFrame);
      return done.then(one.resolve, one.reject);
    });
  });
}

/** One sample at a time; a request of K is K of them, one after another. */
function oneByOne(submit: Submit): Policy {
  return inTurn((waiting) => {
    const next = waiting.shift();
    return next ? [runAlone(submit, next)] : [];
  });
}

async function runAlone(submit: Submit, { request, onFrame, resolve, reject }: Waiting): Promise<void> {
  try {
    for (const candidate of candidatesOf(request)) {
      await submit(request, { candidates: [candidate], lanes: "one" }, onFrame);
    }
    resolve();
  } catch (error) {
    reject(error);
  }
}

const candidatesOf = ({ k }: MixedRequest): number[] => Array.from({ length: k }, (_, candidate) => candidate);

/** `start` takes what it starts from the front of the line; it is asked again when all of that is done. */
function inTurn(start: (waiting: Waiting[]) => readonly Promise<void>[]): Policy {
  const waiting: Waiting[] = [];
  let busy = false;

  async function serve(): Promise<void> {
    busy = true;
    while (waiting.length > 0) await Promise.all(start(waiting));
    busy = false;
  }

  return (request, onFrame) =>
    new Promise((resolve, reject) => {
      waiting.push({ request, onFrame, resolve, reject });
      if (!busy) void serve(); // never rejects: whoever waits is told
    });
}
