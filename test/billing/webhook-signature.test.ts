/** What a webhook must show before it is believed. */
import { describe, expect, test } from "vitest";

import { verifyWebhook } from "#billing/webhook.ts";
import { createDeliveries, type Signed } from "#test/support/stripe/deliveries.ts";

const NOW_MS = 1_790_000_000_500;
const NOW_S = Math.floor(NOW_MS / 1000);
const deliveries = createDeliveries({ secret: "whsec_new", clock: { now: () => NOW_MS } });
const sign = (...args: Parameters<typeof deliveries.sign>): Signed => deliveries.sign(...args);
const event = {
  id: "evt_1",
  object: "event",
  type: "customer.created",
  created: NOW_S,
  livemode: false,
  data: { object: {} },
};
const verify = ({ body, signature }: Signed, secrets = ["whsec_new"], nowMs = NOW_MS) =>
  verifyWebhook({ body: Buffer.from(body), signature }, secrets, nowMs);

describe("a signature", () => {
  test("over these bytes by our secret is believed", () => {
    expect(verify(sign(event))).toMatchObject({ id: "evt_1" });
  });

  test("by any of several secrets is believed, and by several at once", () => {
    expect(verify(sign(event), ["whsec_old", "whsec_new"])).toMatchObject({ id: "evt_1" });
    expect(verify(sign(event), ["whsec_new", "whsec_old"])).toMatchObject({ id: "evt_1" });
    expect(verify(sign(event, { secrets: ["whsec_older", "whsec_new"] }))).toMatchObject({ id: "evt_1" });
  });

  const forgeries: readonly (readonly [string, (signed: Signed) => Signed])[] = [
    ["by another secret", () => sign(event, { secrets: ["whsec_other"] })],
    ["over other bytes", (signed) => ({ ...signed, body: `${signed.body} ` })],
    ["over other content", (signed) => ({ ...signed, body: signed.body.replace("evt_1", "evt_2") })],
    [
      "of the same content, spaced otherwise",
      (signed) => ({ ...signed, body: JSON.stringify(JSON.parse(signed.body)) }),
    ],
    ["with another time", (signed) => ({ ...signed, signature: signed.signature.replace(/t=\d+/, `t=${NOW_S - 1}`) })],
    ["with a second time", (signed) => ({ ...signed, signature: `t=${NOW_S - 1},${signed.signature}` })],
    ["over this, behind a byte order mark", (signed) => ({ ...signed, body: `\u{feff}${signed.body}` })],
    ["without a time", (signed) => ({ ...signed, signature: signed.signature.replace(/t=\d+,/, "") })],
    [
      "with a time that is no number",
      (signed) => ({ ...signed, signature: signed.signature.replace(/t=\d+/, "t=soon") }),
    ],
    ["of another scheme alone", (signed) => ({ ...signed, signature: signed.signature.replaceAll("v1=", "v0=") })],
    ["that is cut short", (signed) => ({ ...signed, signature: signed.signature.replace(/v1=.{10}/, "v1=") })],
    ["that is empty", (signed) => ({ ...signed, signature: "" })],
    ["that is not there", (signed) => ({ body: signed.body, signature: undefined as never })],
  ];
  test.for(forgeries)("%s is refused, saying no more than that", ([, change]) => {
    expect(() => verify(change(sign(event)))).toThrow("the signature of this webhook is not valid");
  });

  test("is refused without any secret", () => {
    expect(() => verify(sign(event), [])).toThrow("the signature of this webhook is not valid");
  });

  test.for([0, -60, 300, -1])("made %d s ago is taken", (age) => {
    expect(verify(sign(event, { timestamp: NOW_S - age }))).toMatchObject({ id: "evt_1" });
  });

  test.for([301, 3_600, -61, -3_600, -1e9])("made %d s ago is refused: it is a replay, or from the future", (age) => {
    expect(() => verify(sign(event, { timestamp: NOW_S - age }))).toThrow("the timestamp of this webhook is not valid");
  });

  test.for<[string, unknown]>([
    ["nothing", ""],
    ["no JSON", "hello"],
    ["null", "null"],
    ["a list", "[]"],
    ["another object", { id: "x", object: "charge" }],
    ["an event without data", { ...event, data: undefined }],
    ["an event of the other API", { ...event, object: "v2.core.event" }],
    ["an event whose mode is not said", { ...event, livemode: "true" }],
  ])("over %s does not make it an event", ([, body]) => {
    expect(() => verify(sign(body))).toThrow("expected an event of Stripe's API");
  });
});
