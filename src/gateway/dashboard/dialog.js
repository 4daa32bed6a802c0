/** One rollout, opened from a link of the page; without this script the link leads to the same as JSON. */
import { ask } from "./ask.js";
import { el, show, table } from "./elements.js";
import { milliseconds, usd } from "./format.js";

export function openOnClick(dialog, body) {
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a[data-rollout]") : null;
    if (link === null || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(body, el("p", { class: "empty" }, "reading…"));
    dialog.showModal();
    void describe(link.dataset.rollout).then((content) => show(body, content));
  });
}

async function describe(id) {
  try {
    const { status, body } = await ask(`/v1/admin/rollouts/${id}`);
    return status === 200 ? content(body) : [el("p", { class: "empty" }, body.detail)];
  } catch (error) {
    return [el("p", { class: "empty" }, `could not be read: ${error.message}`)];
  }
}

function content(rollout) {
  const { timings, params } = rollout;
  const facts = {
    Rollout: el("code", null, rollout.rollout_id),
    Request: el("code", null, rollout.request_id),
    Customer: `${rollout.address} ${rollout.customer_id}`,
    Asked: `${rollout.model}, ${rollout.lane}, by ${rollout.route}${rollout.scored ? ", scored" : ""}`,
    Dataset: rollout.dataset_id === null ? null : `${rollout.dataset_id}, row ${rollout.dataset_row}`,
    Candidates: `${rollout.k} of ${rollout.actions_per_candidate} actions`,
    Prompt: params.prompt === "" ? null : params.prompt,
    Sampling: `seed ${params.seed}, ${params.num_steps} steps, guidance ${params.guidance}`,
    Ended: `${rollout.status}${rollout.error_code === null ? "" : `: ${rollout.error_code}`}, attempt ${rollout.attempt}`,
    Error: rollout.error_message,
    Delivered: `${rollout.frames_delivered ?? 0} of ${rollout.frames} frames at ${rollout.price_mils_per_frame} mils`,
    Engine: timings === null ? null : milliseconds(timings.engine_wall_ms),
    Accepted: rollout.created_at,
    Dispatched: rollout.dispatched_at,
    Finished: rollout.finished_at,
  };
  return [
    el(
      "dl",
      null,
      Object.entries(facts).flatMap(([name, value]) =>
        value === null ? [] : [el("dt", null, name), el("dd", null, value)],
      ),
    ),
    table(
      "Ledger entries",
      [{ name: "Entry" }, { name: "Amount", number: true }, { name: "Balance after", number: true }, { name: "At" }],
      rollout.entries.map(({ kind, usd: amount, balance_after_usd, at }) => [
        kind,
        usd(amount),
        usd(balance_after_usd),
        at,
      ]),
    ),
  ];
}
