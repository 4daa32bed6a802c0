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
 * The default, to be held against its alternatives with `npm run bench:threads` (bench/results/threads.md): all cores, which
 * was up to 1.6 times as fast as half of two for a large graph and made no difference for a small one, also beside ffmpeg.
 * No spinning: every graph has a pool of its own, so threads that spin after one graph take the cores of the next. Machines
 * of more cores were not measured.
 */
export function defaultTuning(cores: number): SessionTuning {
  return {
    threads: cores,
    spinning: false,
    optimisation: "all",
    execution: "sequential",
    arena: true,
    memoryPattern: true,
  };
}
