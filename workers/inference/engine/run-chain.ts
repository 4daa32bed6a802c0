/** Runs graphs on rows: stacks what they declare, by name, and lets each see what those before it gave. */
import type { GraphName } from "#contract/manifest.ts";

import type { EngineCounters } from "./counters.ts";
import type { Graphs } from "./graphs.ts";
import { createStacker, type Tensor, type Tensors } from "./tensor.ts";

/** Named tensors of each row in; named batches out (every output of every graph of the chain). */
export type RunChain = (chain: readonly GraphName[], rows: readonly Tensors[]) => Promise<Tensors>;

/** `onRun` is called after each graph, for whoever watches that the engine lives. */
export function createRunChain(graphs: Graphs, counters: EngineCounters, onRun: () => void): RunChain {
  const stack = createStacker();

  return async (chain, rows) => {
    const outputs: Record<string, Tensor> = {};
    for (const graph of chain) {
      const inputs: Record<string, Tensor> = {};
      for (const { name } of graphs.signatures[graph]?.inputs ?? []) {
        inputs[name] = outputs[name] ?? stack(name, columnOf(graph, name, rows));
      }
      Object.assign(outputs, await graphs.run(graph, inputs));
      counters.runs[graph] += 1;
      counters.rows[graph] += rows.length;
      onRun();
    }
    return outputs;
  };
}

function columnOf(graph: GraphName, name: string, rows: readonly Tensors[]): Tensor[] {
  return rows.map((row) => {
    const tensor = row[name];
    if (!tensor) throw new Error(`${graph} takes ${name}, which this sample does not have`);
    return tensor;
  });
}
