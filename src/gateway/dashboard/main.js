/** Asks for the overview every other second while somebody looks, and shows it. */
import { ask } from "./ask.js";
import { openOnClick } from "./dialog.js";
import { el, show } from "./elements.js";
import { clockTime, count, duration, monthName, plural } from "./format.js";
import { createHistory } from "./history.js";
import { booksPanel, eventsPanel, moneyPanel, refundsPanel } from "./money.js";
import { alarmList, backlogPanel, latencyPanel, poolCards, remembered, tiles } from "./panels.js";

const EVERY_MS = 2_000;

const byId = (id) => document.getElementById(id);
const history = createHistory(sessionStorage);
let latest = null;
/** Of `latest`, by a clock that nobody sets. */
let answeredMs = 0;
let asked = 0;
let paused = false;
let timer;

async function look() {
  clearTimeout(timer);
  asked += 1;
  const own = asked;
  const answer = await ask("/v1/admin/overview").catch((error) => ({ status: 0, body: { detail: error.message } }));
  // Somebody was impatient: the later one counts, and goes on.
  if (own === asked) take(answer);
}

function take({ status, body }) {
  // The session is over, or the token is another: the page itself knows what to ask for.
  if (status === 401) {
    location.reload();
    return;
  }
  if (status === 200) {
    latest = body;
    answeredMs = performance.now();
    draw(latest);
    state("live", `live · ${clockTime(latest.at)}`);
  } else {
    // What was last known stays, and says that it is old.
    const age = latest === null ? "" : `; what is shown is ${duration((performance.now() - answeredMs) / 1_000)} old`;
    state("lost", `no answer (${status === 0 ? body.detail : `${status}: ${body.detail}`})${age}`);
    announce("The gateway does not answer.");
  }
  if (!paused && !document.hidden) timer = setTimeout(look, EVERY_MS);
}

/** For screen readers: what is wrong, once, and not each figure that moves. */
const announce = (text) => show(byId("announced"), text);

function state(kind, text) {
  byId("live").className = `live ${kind}`;
  show(byId("live"), text);
}

function draw(overview) {
  const nowMs = Date.parse(overview.at);
  history.add(nowMs, remembered(overview));
  const urgent = overview.alarms.filter(({ severity }) => severity !== "notice").length;
  document.title = urgent === 0 ? "Dream Engine" : `(${urgent}) Dream Engine`;
  announce(urgent === 0 ? "Nothing is wrong." : overview.alarms.map(({ title }) => title).join(". "));
  document.querySelector("main").dataset.at = overview.at;
  const { backlog, latency, refunds, money } = overview;
  show(byId("alarms"), alarmList(overview));
  show(byId("tiles"), tiles(overview, history, nowMs));
  show(byId("pools"), poolCards(overview, history, nowMs));
  show(
    byId("backlog-note"),
    backlog.rollouts === 0 ? "" : `${plural(backlog.rollouts, "rollout")} of ${plural(backlog.customers, "customer")}`,
  );
  show(byId("backlog"), backlogPanel(overview));
  show(byId("latency-note"), `the last ${duration(latency.window_s)}`);
  show(byId("latency"), latencyPanel(overview));
  show(
    byId("refunds-note"),
    refunds.rollouts === 0 ? "" : `${refunds.is_more ? "more than " : ""}${count(refunds.rollouts)} in a day`,
  );
  show(byId("refunds"), refundsPanel(overview));
  show(byId("money-note"), money === null ? "" : monthName(money.month));
  show(byId("money"), moneyPanel(overview));
  show(byId("events"), eventsPanel(overview));
  show(byId("books"), booksPanel(overview));
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  show(byId("pause"), paused ? "Go on" : "Pause");
  if (paused) {
    clearTimeout(timer);
    state("paused", latest === null ? "paused" : `paused at ${clockTime(latest.at)}`);
  } else void look();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) void look();
});
addEventListener("pagehide", () => history.save());
openOnClick(byId("rollout"), byId("rollout-body"));
show(byId("alarms"), el("p", { class: "empty" }, "reading…"));
void look();
