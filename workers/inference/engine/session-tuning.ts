/** How ONNX Runtime uses the processor for one graph: what the engine runs with, and what bench/threads.ts compares it with. */

export interface SessionTuning {
  /** Threads of one operator, the calling one included. */
  readonly threads: number;
  /** Those that wait for work burn their core a while before they sleep. */
  readonly spinning: boolean;
  readonly optimisation: "disabled" | "basic" | "extended" | "all";
  /** Operators one after the other, or independent ones at once (which takes `threads` more threads). */
  readonly execution: "sequential" | "parallel";
  /** Memory is kept between runs, instead of taken anew. */
  readonly arena: boolean;
  /** Memory of a run is laid out once for each shape. */
  readonly memoryPattern: boolean;
}

/**
 * The default, to be held against its alternatives with `npm run bench:threads` (bench/results/threads.md). Half of the
 * cores: the main thread, which renews locks, and ffmpeg need the others, as do the workers of other models. Every graph
 * has a pool of its own, so that threads which spin after one graph take the cores of the next.
 */
export function defaultTuning(cores: number): SessionTuning {
  return {
    threads: Math.max(1, Math.floor(cores / 2)),
    spinning: false,
    optimisation: "all",
    execution: "sequential",
    arena: true,
    memoryPattern: true,
  };
}
