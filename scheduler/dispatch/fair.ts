/**
 * Which of several customers' rollouts of one lane goes next: start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair
 * Queuing", 1996). Service is counted in frames to generate, divided by the customer's weight. A rollout begins, in that
 * time, at `max(present, what its customer has been given)`; whoever begins first goes first, and its begin is the new
 * present. A customer who comes back from idle begins at the present: it has saved nothing up, and waits behind nobody who
 * has been given more. Where one customer is alone, this is first come, first served.
 *
 * What holds, with wᵢ the weight of customer i and lᵢ the frames of its largest rollout:
 * - Nobody is further ahead of the present than one rollout of its own: `present ≤ begin of i ≤ present + lᵢ/wᵢ`, because
 *   what i was given last began at a present, and the present only grows.
 * - So while i and j both have rollouts waiting, whatever else happens, what they are given differs by
 *   `|Wᵢ/wᵢ − Wⱼ/wⱼ| ≤ lᵢ/wᵢ + lⱼ/wⱼ`: from one moment to another each gets the growth of the present, give or take lᵢ/wᵢ.
 * - A rollout of i with `a` frames of its own customer before it waits until each other customer j was given at most
 *   `wⱼ·(a + lᵢ)/wᵢ + lⱼ` frames, whatever arrives meanwhile: the present does not get past its begin.
 * - A state that is lost and begun anew (`IDLE`) is wrong by at most lᵢ/wᵢ for each customer i. Where leaders change often
 *   that would add up; `replayed` makes next to nothing of it, as long as it looks back on several rollouts of each.
 *
 * A rollout is charged once, when it is dispatched; that it runs again, or is put back, charges nothing.
 */

export interface FairRow {
  readonly id: string;
  readonly customer_id: string;
  /** When it was queued: the older goes first where two begin at the same time. */
  readonly queued_ms: number;
  /** What the engine generates for it: candidates times actions. At least 1. */
  readonly frames: number;
  /** Share of its customer: twice the weight is given twice the frames. Above 0. */
  readonly weight: number;
}

/** A plain value that the leader keeps for each lane of a model; nothing of it is stored. */
export interface FairState {
  /** Frames by weight: where the rollout began that was dispatched last. */
  readonly present: number;
  /** Where the next one of a customer begins, of those who are ahead of the present; all others begin at it. */
  readonly given: ReadonlyMap<string, number>;
}

/** Nobody is ahead of anybody. */
export const IDLE: FairState = { present: 0, given: new Map() };

/** What is known of a customer's waiting rollouts. */
export interface CustomerQueue<Row extends FairRow> {
  /** Oldest first, all of one customer. */
  readonly rows: readonly Row[];
  /** Whether others of its rollouts wait behind these, which were not read. */
  readonly more: boolean;
}

/**
 * Rollouts in the order in which they go next, for as long as the caller takes them. Ends before the first that cannot be
 * known: where the next one is of a customer of whom no more was read. Costs O((customers + taken) · log customers).
 */
export function* inFairOrder<Row extends FairRow>(
  state: FairState,
  queues: readonly CustomerQueue<Row>[],
): Generator<Row, void> {
  const line = queues
    .flatMap<Place<Row>>((queue) => {
      const row = queue.rows[0];
      return row ? [{ row, queue, at: 0, begin: beginOf(state, row.customer_id) }] : [];
    })
    .sort(inLine); // sorted, and so a heap
  for (let next = line[0]; next?.row; next = line[0]) {
    yield next.row;
    const at = next.at + 1;
    const row = next.queue.rows[at] ?? null;
    if (row || next.queue.more) line[0] = { row, queue: next.queue, at, begin: next.begin + shareOf(next.row) };
    else {
      const last = line.pop();
      if (last && line.length > 0) line[0] = last;
    }
    sinkFirst(line);
  }
}

/** The state after these were dispatched, in this order. */
export function served(state: FairState, rows: readonly FairRow[]): FairState {
  let { present } = state;
  const given = new Map(state.given);
  for (const row of rows) {
    present = Math.max(present, given.get(row.customer_id) ?? present);
    given.set(row.customer_id, present + shareOf(row));
  }
  // Who is not ahead begins at the present anyway.
  for (const [customer, begin] of given) if (begin <= present) given.delete(customer);
  return { present, given };
}

/**
 * The state of a leader who takes over, from what was dispatched of late. It is what the leader before had, exactly, where
 * `dispatched` reaches back to when the lane was last idle; else it differs by at most lᵢ/wᵢ for a customer i.
 */
export function replayed(dispatched: readonly (FairRow & { readonly dispatched_ms: number })[]): FairState {
  const rounds = Map.groupBy(
    dispatched.toSorted((a, b) => a.dispatched_ms - b.dispatched_ms),
    ({ dispatched_ms }) => dispatched_ms,
  );
  // Those of a round were dispatched in fair order, too, in which the database does not keep them.
  return [...rounds.values()].reduce((state, round) => served(state, [...inFairOrder(state, queuesOf(round))]), IDLE);
}

/** The first waiting rollout of a customer. */
export type Head = Pick<FairRow, "id" | "customer_id" | "queued_ms">;

/**
 * Those customers of whom the next `count` rollouts can be: the others begin later than all of these, each of whom has one.
 * So no more need be read than theirs, however many customers wait.
 */
export function firstInLine(state: FairState, heads: readonly Head[], count: number): string[] {
  const line = heads.map((row) => ({ row, begin: beginOf(state, row.customer_id) }));
  return line
    .sort(inLine)
    .slice(0, count)
    .map(({ row }) => row.customer_id);
}

/** From rows of many customers, each one's oldest first; those of whom `read` were read may have more. */
export function queuesOf<Row extends FairRow>(
  rows: readonly Row[],
  read = Number.POSITIVE_INFINITY,
): CustomerQueue<Row>[] {
  const own = Map.groupBy(rows, ({ customer_id }) => customer_id);
  return [...own.values()].map((rows) => ({ rows, more: rows.length >= read }));
}

function beginOf({ present, given }: FairState, customer: string): number {
  return Math.max(present, given.get(customer) ?? present);
}

function shareOf({ id, frames, weight }: FairRow): number {
  const share = frames / weight;
  if (share > 0 && Number.isFinite(share)) return share;
  throw new RangeError(`rollout ${id} has ${frames} frames at weight ${weight}; expected both above 0`);
}

/** Where a customer stands in line. `row` is null behind the last that was read, where others wait. */
interface Place<Row extends FairRow> {
  readonly row: Row | null;
  readonly queue: CustomerQueue<Row>;
  readonly at: number;
  readonly begin: number;
}

interface InLine {
  readonly row: Omit<Head, "customer_id"> | null;
  readonly begin: number;
}

/** What was not read may be older than all that begin at the same time. */
function inLine(a: InLine, b: InLine): number {
  if (a.begin !== b.begin) return a.begin - b.begin;
  if (!a.row || !b.row) return Number(a.row !== null) - Number(b.row !== null);
  if (a.row.queued_ms !== b.row.queued_ms) return a.row.queued_ms - b.row.queued_ms;
  return a.row.id < b.row.id ? -1 : Number(a.row.id > b.row.id);
}

/** Restores a binary heap whose first element may be too large. */
function sinkFirst(heap: InLine[]): void {
  const sinking = heap[0];
  if (!sinking) return;
  let at = 0;
  for (;;) {
    const left = heap[2 * at + 1];
    const right = heap[2 * at + 2];
    const smaller =
      left && right && inLine(right, left) < 0 ? { item: right, at: 2 * at + 2 } : { item: left, at: 2 * at + 1 };
    if (!smaller.item || inLine(smaller.item, sinking) >= 0) break;
    heap[at] = smaller.item;
    at = smaller.at;
  }
  heap[at] = sinking;
}
