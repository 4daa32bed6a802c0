/** The operator's page as somebody sees it: a real gateway on a real database, in a real browser. Its pictures stay in test-output/. */
import { mkdir } from "node:fs/promises";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { recordCheck } from "#ledger/checks.ts";
import { type Chromium, findChromium, startChromium, type Tab } from "#test/support/chromium.ts";

import {
  addMarkup,
  BUNDLES,
  fillScene,
  goOn,
  lookAtPools,
  MARKUP_EMAIL,
  MARKUP_MESSAGE,
  MARKUP_PROMPT,
  type Scene,
} from "./support/operator-scene.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const TOKEN = "operator-token-of-the-tests";
const PICTURES = "test-output/dashboard";
const DESKTOP = { width: 1280, height: 800 } as const;
const PHONE = { width: 390, height: 844, phone: true } as const;
/** What the page remembers, in steps that a chart takes for one line. */
const HISTORY_MS = 600_000;
const STEPS = 50;
const SESSION_MS = 8 * 3_600_000;

/** How much there is of the first pool's history. */
const DRAWN = `document.querySelector(".pool svg path.ready").getAttribute("d").length`;

const chromium = await findChromium();

describe.skipIf(chromium === null)("the operator's page in Chromium (skipped where there is none)", () => {
  let t: TestGateway;
  let browser: Chromium;
  let scene: Scene;
  let failed: string;
  let url: string;
  let tab: Tab;
  let nowMs = Date.now() - HISTORY_MS;

  beforeAll(async () => {
    await mkdir(PICTURES, { recursive: true });
    t = await startTestGateway({
      config: { OPERATOR_TOKEN: TOKEN },
      bundles: BUNDLES,
      clock: { now: () => nowMs },
    });
    ({ url } = await t.listen());
    browser = await startChromium(chromium ?? "");
    tab = await browser.tab();
    await tab.appear({ ...DESKTOP, scheme: "light" });
  });
  afterAll(async () => {
    await browser?.stop();
    await t?.stop();
  });

  const text = (): Promise<string> => tab.evaluate<string>("document.body.innerText");
  /** The next look, at the gateway's present time. */
  const look = async (): Promise<void> => {
    await tab.evaluate(`if (document.querySelector("#pause").getAttribute("aria-pressed") === "false") document.querySelector("#pause").click();
      document.querySelector("#pause").click()`);
    await tab.until(`document.querySelector("main").dataset.at === ${JSON.stringify(new Date(nowMs).toISOString())}`);
  };
  const type = async (token: string): Promise<void> => {
    await tab.evaluate(
      `document.querySelector("#token").value = ${JSON.stringify(token)}, document.querySelector("#token").focus()`,
    );
    await tab.press("Enter");
  };
  /** Wider than the window would have to be moved sideways to be read. */
  const overflow = (): Promise<number> =>
    tab.evaluate<number>("document.documentElement.scrollWidth - document.documentElement.clientWidth");

  test("asks for the token, and says when it is another", async () => {
    await tab.go(`${url}/dashboard`);
    await type("not the token at all");
    await tab.until(`document.querySelector(".problem")?.textContent === "this is not the operator's token"`);
    expect(await tab.evaluate("document.cookie")).toBe("");
    expect(await text()).not.toMatch(/pool|backlog|customer/i);
    await tab.screenshot(`${PICTURES}/login.png`);
    // Both answers were refusals, as they should be.
    const refusals = tab.problems.splice(0);
    expect(refusals.filter((problem) => !problem.includes("401"))).toEqual([]);
  });

  test("with the token, on a server where nothing has happened yet, it says what would be where", async () => {
    await type(TOKEN);
    await tab.until(`document.querySelector("main")?.dataset.at !== undefined`);
    expect(await tab.evaluate("location.href")).toBe(`${url}/dashboard`);
    expect(await tab.evaluate("document.cookie"), "no script sees the session").toBe("");
    const shown = await text();
    for (const expected of [
      "No scheduler has looked at it yet.",
      "Nobody waits.",
      "Nothing came out in the last minutes.",
      "Nothing was refunded.",
      "Nothing was earned or rented this month.",
      "No pool changed its size yet.",
      "not audited yet",
    ]) {
      expect(shown).toContain(expected);
    }
    await tab.screenshot(`${PICTURES}/empty.png`, { whole: true });
    expect(tab.problems).toEqual([]);
  });

  test("it shows the pools and why, who waits, how fast, what was refunded and why, and the month's margin", async () => {
    scene = await fillScene(t.db);
    const from = nowMs;
    for (let step = 1; step <= STEPS; step++) {
      nowMs = from + (step * HISTORY_MS) / STEPS;
      await lookAtPools(t.db, step / STEPS, nowMs);
      await goOn(t.db, scene, step);
      await look();
    }
    const shown = await text();
    for (const expected of [
      "Nothing is wrong.",
      "DreamDojo 2B",
      "2 workers would be done in 194 s, longer than the 140 s from which on another start pays: starting 1.",
      "3 wanted",
      "2 ready",
      "1 starting",
      "16 of 32",
      "cold start 70 s",
      "1 worker needed 24 s ago: kept until that is 60 s ago.",
      "always warm: 1",
      "grace@robots.example",
      "engine timeout",
      "a single run took longer than 60 s",
      "dreamdojo-2b 0 → 1 workers",
      "waited 70 s at eight in the morning",
      "balanced, audited 3 h ago",
      "no Stripe here",
    ]) {
      expect(shown).toContain(expected);
    }
    // The wall of what the worker said it took, and a share below 100 %.
    expect(shown).toMatch(/Realtime\s+all\s+\d+ of \d+\s+\d\.\d\d s/);
    expect(shown).toMatch(/all pools\s+[\d,]+\s+\$\d+\.\d\d\s+\$\d\.\d+\s+\$0\.000\d+\s+\d\d\.\d %/);
    expect(await tab.evaluate(DRAWN)).toBeGreaterThan(200);
    expect(await overflow()).toBe(0);
    await tab.screenshot(`${PICTURES}/light.png`);
    await tab.screenshot(`${PICTURES}/light-whole.png`, { whole: true });
    expect(tab.problems).toEqual([]);
  });

  test("what a customer called itself, asked for, or made a worker say is text, whatever is in it", async () => {
    failed = await addMarkup(t.db);
    nowMs += 2_000;
    await look();
    const shown = await text();
    expect(shown).toContain(MARKUP_EMAIL);
    expect(await tab.evaluate(`document.querySelector(".message[title*=svg]").title`)).toBe(MARKUP_MESSAGE);
    expect(await tab.evaluate(`document.querySelectorAll("img, b > script, svg[onload]").length`)).toBe(0);
    expect(await tab.evaluate("document.title")).toBe("Dream Engine");
    // Not even a mistake in the page could make markup of it.
    const tried = await tab.evaluate(
      `(() => { try { document.createElement("p").innerHTML = "<b>x"; return "done" } catch (error) { return error.name } })()`,
    );
    expect(tried).toBe("TypeError");
    await expect.poll(() => tab.problems.join()).toContain("policy refused: require-trusted-types-for");
    tab.problems.splice(0);
  });

  test("a rollout opens by the keyboard, stays open while the page goes on, and closes again", async () => {
    await tab.evaluate(`document.querySelector('a[data-rollout="${failed}"]').focus()`);
    nowMs += 2_000;
    await look();
    expect(await tab.evaluate("document.activeElement.dataset.rollout"), "a look leaves the focus where it is").toBe(
      failed,
    );
    await tab.press("Enter");
    await tab.until(`document.querySelector("#rollout-body").innerText.includes("Balance after")`);
    const shown = await tab.evaluate<string>(`document.querySelector("#rollout").innerText`);
    for (const expected of [failed, MARKUP_EMAIL, MARKUP_PROMPT, MARKUP_MESSAGE, "debit", "refund", "$0.0245"]) {
      expect(shown).toContain(expected);
    }
    await tab.screenshot(`${PICTURES}/rollout.png`);
    await tab.press("Escape");
    await tab.until(`!document.querySelector("#rollout").open`);
    await tab.evaluate("scrollTo(0, 0)");
    expect(tab.problems).toEqual([]);
  });

  test("it is readable in the dark and on a phone", async () => {
    await tab.appear({ ...DESKTOP, scheme: "dark" });
    await tab.screenshot(`${PICTURES}/dark.png`);
    await tab.appear({ ...PHONE, scheme: "light" });
    expect(await overflow()).toBe(0);
    await tab.screenshot(`${PICTURES}/phone.png`, { whole: true });
    await tab.appear({ ...DESKTOP, scheme: "light" });
  });

  test("what is wrong stands on top and in the window's name", async () => {
    await recordCheck(t.db, ["cus_1/balance: entries add up to 5 mils, the account says 4"]);
    nowMs += 20_000;
    await lookAtPools(t.db, 1, nowMs, {
      crash_loop: "exited with 134: cannot load denoiser_body.onnx",
      ready: 0,
      starting: 1,
    });
    await look();
    const alarms = await tab.evaluate<string>(`document.querySelector("#alarms").innerText`);
    expect(alarms).toContain("The books do not balance");
    expect(alarms).toContain("the account says 4");
    expect(alarms).toContain("Workers of dreamdojo-2b keep dying");
    expect(alarms).toContain("cannot load denoiser_body.onnx");
    expect(await tab.evaluate("document.title")).toBe("(2) Dream Engine");
    await tab.screenshot(`${PICTURES}/alarms.png`);
    expect(tab.problems).toEqual([]);
  });

  test("what it saw outlasts a reload, and a gateway that does not answer", async () => {
    await tab.go(`${url}/dashboard`);
    await tab.until(`document.querySelector("main")?.dataset.at !== undefined`);
    expect(await tab.evaluate(DRAWN)).toBeGreaterThan(200);
    await tab.evaluate(`globalThis.fetch = async () => { throw new Error("connection refused") }`);
    await tab.evaluate(`document.querySelector("#pause").click(), document.querySelector("#pause").click()`);
    await tab.until(`document.querySelector("#live.lost") !== null`);
    const shown = await text();
    expect(shown).toMatch(/no answer \(connection refused\); what is shown is \d+ s old/);
    expect(shown).toContain("DreamDojo 2B");
    await tab.go(`${url}/dashboard`);
    await tab.until(`document.querySelector("#live.live") !== null`);
    expect(tab.problems).toEqual([]);
  });

  test("a session that is over asks for the token again", async () => {
    nowMs += SESSION_MS;
    await tab.evaluate(`document.querySelector("#pause").click(), document.querySelector("#pause").click()`);
    await tab.until(`document.querySelector("#token") !== null`);
    expect(await text()).not.toContain("DreamDojo");
  });
});
