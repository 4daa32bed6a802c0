/**
 * What the ledger should do, in plain sequential code without a database: the independent model that the property
 * tests compare every reply and the final books with. One customer with two keys.
 */
import type { Outcome } from "#contract/jobs.ts";
import { isTerminal } from "#rollouts/lifecycle.ts";
import type { RolloutStatus } from "#contract/rollout.ts";

export type Action =
  | { readonly do: "credit"; readonly amount: number; readonly payment: number }
  | {
      readonly do: "accept";
      readonly key: 0 | 1;
      readonly k: number;
      readonly actions: number;
      readonly idempotency: number | null;
      readonly payload: number;
    }
  | { readonly do: "dispatch"; readonly rollout: number }
  | { readonly do: "settle"; readonly rollout: number; readonly attempt: number | null; readonly outcome: Outcome }
  | { readonly do: "revoke"; readonly key: 0 | 1 };

interface ModelRollout {
  readonly frames: number;
  readonly charge: number;
  readonly payload: number;
  readonly idempotency: number | null;
  status: RolloutStatus;
  attempt: number;
  refunded: number;
}

/** `accepted` and `replayed` name a rollout by its place in `rollouts`. */
export type Reply =
  | "done"
  | "nothing"
  | "conflict"
  | "revoked"
  | "too little"
  | "mismatch"
  | { readonly accepted: number }
  | { readonly replayed: number };

export interface LedgerModel {
  readonly rollouts: ModelRollout[];
  balance: number;
  /** Kind and signed amount, oldest first. */
  readonly entries: [kind: string, amount: number][];
  apply(action: Action): Reply;
}

const PRICE = 5;

export function createLedgerModel(): LedgerModel {
  const rollouts: ModelRollout[] = [];
  const entries: [string, number][] = [];
  const payments = new Map<number, number>();
  const revoked = new Set<number>();
  const remembered = new Map<number, number>();

  function post(kind: string, amount: number): void {
    model.balance += amount;
    entries.push([kind, amount]);
  }

  const model: LedgerModel = {
    rollouts,
    balance: 0,
    entries,
    apply(action) {
      if (action.do === "credit") return credit(action);
      if (action.do === "accept") return accept(action);
      if (action.do === "settle") return settle(action);
      if (action.do === "dispatch") return dispatch(action);
      revoked.add(action.key);
      return "done";
    },
  };

  function credit({ payment, amount }: Action & { do: "credit" }): Reply {
    const before = payments.get(payment);
    if (before !== undefined) return before === amount ? "nothing" : "conflict";
    payments.set(payment, amount);
    post("credit", amount);
    return "done";
  }

  function accept({ key, k, actions, idempotency, payload }: Action & { do: "accept" }): Reply {
    const frames = k * (actions + 1);
    const charge = frames * PRICE;
    if (revoked.has(key)) return "revoked";
    const earlier = idempotency === null ? undefined : remembered.get(idempotency);
    if (earlier !== undefined) return rollouts[earlier]?.payload === payload ? { replayed: earlier } : "mismatch";
    if (model.balance < charge) return "too little";
    const index =
      rollouts.push({
        frames,
        charge,
        payload,
        idempotency,
        status: "queued",
        attempt: 0,
        refunded: 0,
      }) - 1;
    post("debit", -charge);
    if (idempotency !== null) remembered.set(idempotency, index);
    return { accepted: index };
  }

  function dispatch({ rollout: index }: Action & { do: "dispatch" }): Reply {
    const rollout = rollouts[index];
    if (rollout?.status !== "queued") return "nothing";
    rollout.status = "dispatched";
    rollout.attempt += 1;
    return "done";
  }

  function settle({ rollout: index, attempt, outcome }: Action & { do: "settle" }): Reply {
    const rollout = rollouts[index];
    if (!rollout || isTerminal(rollout.status)) return "nothing";
    if (attempt !== null && attempt !== rollout.attempt) return "nothing";
    if (outcome.kind === "succeeded" && rollout.status === "queued") return "nothing";
    const reported =
      outcome.kind === "succeeded" ? outcome.result.frames : outcome.kind === "expired" ? 0 : outcome.frames_delivered;
    rollout.status = outcome.kind;
    rollout.refunded = (rollout.frames - Math.min(reported, rollout.frames)) * PRICE;
    if (rollout.refunded > 0) post("refund", rollout.refunded);
    if ((outcome.kind === "cancelled" || outcome.kind === "expired") && rollout.idempotency !== null)
      remembered.delete(rollout.idempotency);
    return "done";
  }

  return model;
}
