/** A binary heap of numbers, smallest first: when those who are busy will be done. */
export interface Heap {
  size(): number;
  /** Infinity when there is none. */
  first(): number;
  push(value: number): void;
  pop(): void;
}

export function createHeap(): Heap {
  const values: number[] = [];
  const at = (index: number): number => values[index] ?? Number.POSITIVE_INFINITY;
  return {
    size: () => values.length,
    first: () => at(0),
    push(value) {
      let index = values.push(value) - 1;
      while (index > 0) {
        const parent = (index - 1) >> 1;
        if (at(parent) <= value) break;
        values[index] = at(parent);
        index = parent;
      }
      values[index] = value;
    },
    pop() {
      const value = values.pop();
      if (value === undefined || values.length === 0) return;
      let index = 0;
      for (;;) {
        const left = 2 * index + 1;
        const child = at(left + 1) < at(left) ? left + 1 : left;
        if (at(child) >= value) break;
        values[index] = at(child);
        index = child;
      }
      values[index] = value;
    },
  };
}
