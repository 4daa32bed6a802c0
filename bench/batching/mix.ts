/** The requests of bench/batching.ts and when they come: the same for every policy, from seeds alone. */
import type { Lane } from "#contract/rollout.ts";
import { seededRandom } from "#test/chaos/random.ts";

/** A planner's candidates. */
const K_MANY = 8;
/** Requests of a deck, and what they are made of. */
const DECK = 16;
const OF_A_DECK = { many: 2, bulk: 6, guided: 4 } as const;

/** What varies between the requests to a bundle, taken in turn. */
export interface Mix {
  /** Actions of a candidate. */
  readonly lengths: readonly number[];
  readonly steps: readonly number[];
  /** Of those that are guided; the others have 0. */
  readonly guidance: number;
}

export interface MixedRequest {
  readonly k: number;
  readonly lane: Lane;
  readonly actions: number;
  readonly numSteps: number;
  readonly guidance: number;
  readonly seed: bigint;
}

/**
 * Decks of 16 requests, each with two of K = 8, six in the bulk lane, a quarter guided, lengths and steps in equal parts; what goes with
 * what, and the order, are drawn. So every deck asks for much the same work, and an offered load is what it is said to be.
 */
export function mixedRequests(decks: number, { lengths, steps, guidance }: Mix, seed: number): MixedRequest[] {
  const random = seededRandom(seed);
  const shuffled = <T>(items: readonly T[]): T[] => {
    const left = [...items];
    return items.flatMap(() => left.splice(random.integer(0, left.length - 1), 1));
  };
  return Array.from({ length: decks }, (_, deck) => {
    const ks = shuffled(cards((card) => (card < OF_A_DECK.many ? K_MANY : 1)));
    const lanes = shuffled(cards((card): Lane => (card < OF_A_DECK.bulk ? "bulk" : "realtime")));
    const guidances = shuffled(cards((card) => (card < OF_A_DECK.guided ? guidance : 0)));
    const lengthOf = shuffled(cards((card) => lengths[card % lengths.length] ?? 0));
    const stepsOf = shuffled(cards((card) => steps[card % steps.length] ?? 0));
    return ks.map((k, card): MixedRequest => {
      const request = {
        k,
        lane: lanes[card] ?? "realtime",
        actions: lengthOf[card] ?? 0,
        numSteps: stepsOf[card] ?? 0,
      };
      return { ...request, guidance: guidances[card] ?? 0, seed: BigInt(1 + deck * DECK + card) };
    });
  }).flat();
}

/**
 * Times of arrival in milliseconds, sorted: of a Poisson process that has exactly `count` of them in `count / perS`
 * seconds, which are then distributed evenly and independently. The same seed gives the same ones, only denser at a higher rate.
 */
export function arrivalsOf(count: number, perS: number, seed: number): number[] {
  const random = seededRandom(seed);
  const withinMs = (count / perS) * 1000;
  return Array.from({ length: count }, () => random.next() * withinMs).sort((a, b) => a - b);
}

const cards = <T>(pick: (card: number) => T): T[] => Array.from({ length: DECK }, (_, card) => pick(card));

/** Frames that a request asks for. */
export const framesOf = ({ k, actions }: MixedRequest): number => k * actions;
