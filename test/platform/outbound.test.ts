/** HTTP to whatever customers name: nothing of ours is reached by it, and nobody holds it for longer than allowed. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";

import { afterEach, describe, expect, test } from "vitest";

import { ApiError } from "#contract/errors.ts";
import {
  checkOutboundUrl,
  createOutbound,
  type Lookup,
  type Outbound,
  type OutboundRequest,
} from "#platform/outbound.ts";
import { isPublic } from "#platform/public-address.ts";
import { answers, type Behaviour, startReceiver, startTcpReceiver } from "#test/support/receiver.ts";
import { HOOKS_TEST, TEST_CA } from "#test/support/tls.ts";

const stops: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0)) await stop();
});

const inside = createOutbound({ allowPrivate: true });
const outside = createOutbound({ allowPrivate: false });
const GET: OutboundRequest = { method: "GET", timeoutMs: 5_000, bodyBytesMax: 100 };

async function receiver(behaviour: Behaviour, tls?: typeof HOOKS_TEST) {
  const started = await startReceiver(behaviour, tls ? { tls } : {});
  stops.push(() => started.stop());
  return started;
}

/** Speaks these bytes at whoever connects. */
async function raw(onConnection: Parameters<typeof startTcpReceiver>[0]) {
  const started = await startTcpReceiver(onConnection);
  stops.push(() => started.stop());
  return { ...started, url: `http://127.0.0.1:${started.port}/` };
}

const toLoopback: Lookup = async () => ["127.0.0.1"];

const failureOf = async (work: Promise<unknown>): Promise<{ readonly name: string; readonly message: string }> =>
  work.then(
    (value) => {
      throw new Error(`expected a failure, got ${JSON.stringify(value)}`);
    },
    (error: unknown) => error as Error,
  );

test("sends what it is given, and answers with status, headers and body", async () => {
  const { url, received } = await receiver((response) => {
    response.writeHead(201, { "x-one": "1", "set-cookie": ["a=1", "b=2"] }).end("made");
  });
  const reply = await inside.request(`${url}/a?b=c#d`, {
    ...GET,
    method: "POST",
    headers: { "content-type": "text/plain" },
    body: Buffer.from("héllo"),
  });
  expect(reply).toMatchObject({ status: 201, truncated: false, headers: { "x-one": "1", "set-cookie": "a=1, b=2" } });
  expect(reply.body.toString()).toBe("made");
  expect(received).toMatchObject([
    { method: "POST", url: "/a?b=c", body: "héllo", headers: { "content-type": "text/plain", "content-length": "6" } },
  ]);
});

describe("addresses that are not public", () => {
  const NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.1.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "",
    "example.com",
    "127.0.0.1%lo",
    "fe80::1%eth0",
  ];
  const PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "172.32.0.1",
    "192.167.255.255",
    "2606:4700:4700::1111",
    "2a00:1450::1",
  ];

  test("are told from public ones", () => {
    expect(NOT_PUBLIC.filter(isPublic)).toEqual([]);
    expect(PUBLIC.filter((address) => !isPublic(address))).toEqual([]);
  });

  test.for([
    "http://127.0.0.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://0/",
    "http://127.0.0.1./",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[0:0:0:0:0:ffff:7f00:1]/",
    "http://[::]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://0xA9FEA9FE/",
    "https://10.0.0.1:8443/",
    "http://１２７.０.０.１/",
    "http://localhost/",
    "http://LOCALHOST:80/",
    "http://localhost./",
    "http://a.localhost/",
    "http:\\\\127.0.0.1/",
    "http:127.0.0.1/",
  ])("%s is refused when it is named, and never connected to", async (url) => {
    expect(() => checkOutboundUrl(url, "url", false)).toThrow(ApiError);
    await expect(outside.request(url, GET)).rejects.toMatchObject({ name: "OutboundError" });
    expect(() => checkOutboundUrl(url, "url", true)).not.toThrow();
  });

  test("are not connected to by a name that leads to one of them, be it one among public ones", async () => {
    const { port, received } = await receiver(answers(200));
    for (const addresses of [
      ["127.0.0.1"],
      ["8.8.8.8", "127.0.0.1"],
      ["127.0.0.1", "2606:4700:4700::1111"],
      ["::ffff:127.0.0.1"],
    ]) {
      const outbound = createOutbound({ allowPrivate: false, lookup: async () => addresses });
      const { message } = await failureOf(outbound.request(`http://hooks.test:${port}/`, GET));
      // Nothing of what the name server said about a network that may be ours.
      expect(message).toBe("hooks.test is not an address in the public internet");
    }
    expect(received).toEqual([]);
  });

  test("may be connected to where the operator allows it", async () => {
    const { port, received } = await receiver(answers(200));
    const outbound = createOutbound({ allowPrivate: true, lookup: async () => ["127.0.0.1"] });
    expect(await outbound.request(`http://hooks.test:${port}/`, GET)).toMatchObject({ status: 200 });
    expect(received[0]?.headers["host"]).toBe(`hooks.test:${port}`);
    expect(await inside.request(`http://localhost:${port}/`, GET)).toMatchObject({ status: 200 });
  });
});

describe("a name server that says something else the second time", () => {
  test("is asked once, and the connection goes to what it said then", async () => {
    const { port, received } = await receiver(answers(200));
    let asked = 0;
    // Nobody answers on that port there, whether this machine reaches it or not.
    const rebinding: Lookup = async () => [asked++ === 0 ? "8.8.8.8" : "127.0.0.1"];
    const outbound = createOutbound({ allowPrivate: false, lookup: rebinding });
    const { message } = await failureOf(outbound.request(`http://hooks.test:${port}/`, { ...GET, timeoutMs: 500 }));
    expect(message).not.toContain("127.0.0.1");
    expect(asked).toBe(1);
    // The second exchange is refused by itself.
    await expect(outbound.request(`http://hooks.test:${port}/`, GET)).rejects.toThrow("public internet");
    expect(received).toEqual([]);
  });

  test("leads the first connection to loopback where that is allowed, and to the address that was checked alone", async () => {
    const { port, received } = await receiver(answers(200));
    // 127.0.0.2 has no such server: whoever looked up again, or by themselves, would not arrive.
    const outbound = createOutbound({ allowPrivate: true, lookup: toLoopback });
    expect(await outbound.request(`http://nowhere.invalid:${port}/`, GET)).toMatchObject({ status: 200 });
    expect(received).toHaveLength(1);
  });
});

test("a redirect is an answer, and is not followed", async () => {
  const { received, url } = await receiver((response) => response.writeHead(302, { location: "/secret" }).end());
  expect(await inside.request(url, GET)).toMatchObject({ status: 302, headers: { location: "/secret" } });
  expect(received).toHaveLength(1);
});

describe("time", () => {
  const QUICK = { ...GET, timeoutMs: 200 };
  const slow: [string, () => Promise<[Outbound, string]>][] = [
    ["a receiver that takes the connection and says nothing", async () => [inside, (await raw(() => undefined)).url]],
    ["one that takes the request and never answers", async () => [inside, (await receiver(() => undefined)).url]],
    [
      "headers that come byte by byte",
      async () => {
        const { url } = await raw((socket) => {
          socket.write("HTTP/1.1 200 OK\r\nx: ");
          const drip = setInterval(() => socket.write("a"), 20);
          socket.on("close", () => clearInterval(drip));
        });
        return [inside, url];
      },
    ],
    [
      "a body that comes byte by byte",
      async () => {
        const { url } = await receiver((response) => {
          response.writeHead(200).flushHeaders();
          const drip = setInterval(() => response.write("a"), 50);
          response.on("close", () => clearInterval(drip));
        });
        return [inside, url];
      },
    ],
    [
      "a name server that never answers",
      async () => [
        createOutbound({ allowPrivate: false, lookup: () => new Promise(() => undefined) }),
        "http://hooks.test/",
      ],
    ],
    [
      "informational answers without end",
      async () => {
        const { url } = await raw((socket) => {
          const drip = setInterval(() => socket.write("HTTP/1.1 102 Processing\r\n\r\n"), 20);
          socket.on("close", () => clearInterval(drip));
        });
        return [inside, url];
      },
    ],
  ];
  test.for(slow)("is limited over the whole exchange: %s", async ([, prepare]) => {
    const [outbound, url] = await prepare();
    const startedMs = performance.now();
    const { name, message } = await failureOf(outbound.request(url, QUICK));
    expect({ name, message }).toEqual({ name: "OutboundError", message: "no complete answer within 0.2 s" });
    expect(performance.now() - startedMs).toBeLessThan(2_000);
  });

  test("ends when the caller says so, with the caller's reason", async () => {
    const { url } = await receiver(() => undefined);
    const stop = new AbortController();
    const work = inside.request(url, { ...GET, signal: stop.signal });
    stop.abort(new Error("we stop"));
    await expect(work).rejects.toThrow("we stop");
    await expect(inside.request(url, { ...GET, signal: stop.signal })).rejects.toThrow("we stop");
  });
});

describe("a receiver that misbehaves", () => {
  test("with a huge body is heard up to the limit", async () => {
    let written = 0;
    const { url } = await receiver((response) => {
      response.on("error", () => undefined);
      const more = (): void => {
        while (!response.destroyed && written < 1e9 && response.write(Buffer.alloc(65_536, "x"))) written += 65_536;
      };
      response.on("drain", more);
      more();
    });
    const reply = await inside.request(url, GET);
    expect(reply).toMatchObject({ status: 200, truncated: true });
    expect(reply.body.length).toBe(100);
    expect(written).toBeLessThan(1e8);
  });

  test("with a body of exactly the limit is heard to the end", async () => {
    const { url } = await receiver((response) => response.end("x".repeat(100)));
    const reply = await inside.request(url, GET);
    expect([reply.body.length, reply.truncated]).toEqual([100, false]);
  });

  test.for<[string, string, string]>([
    ["that promises more than it sends", "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort", "closed before"],
    ["that answers garbage", "\x00\x01 hello\r\n\r\n", "not HTTP"],
    ["that names two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "not HTTP"],
    ["that closes at once", "", "closed"],
    [
      "that wants another protocol",
      "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
      "closed",
    ],
    ["with headers without end", `HTTP/1.1 200 OK\r\n${"x: y\r\n".repeat(20_000)}`, "not HTTP"],
  ])("%s: no answer, and said so", async ([, bytes, expected]) => {
    const { url } = await raw((socket) => socket.once("data", () => socket.end(bytes)));
    const { name, message } = await failureOf(inside.request(url, GET));
    expect(name).toBe("OutboundError");
    expect(message).toContain(expected);
  });

  test("that says less than it sends is heard for what it said", async () => {
    const { url } = await raw((socket) => {
      socket.once("data", () => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 500 No\r\n\r\n"));
    });
    const reply = await inside.request(url, GET);
    expect([reply.status, reply.body.toString()]).toEqual([200, "ok"]);
  });

  test("that is not there is told in words, without addresses that nobody gave", async () => {
    const gone = await startTcpReceiver(() => undefined);
    await gone.stop();
    const outbound = createOutbound({ allowPrivate: true, lookup: toLoopback });
    const { message } = await failureOf(outbound.request(`http://hooks.test:${gone.port}/`, GET));
    expect(message).toBe("the connection was refused");
    const nobody = createOutbound({
      allowPrivate: false,
      lookup: () =>
        Promise.reject(Object.assign(new Error("queryA ENOTFOUND hooks.test 10.1.2.3"), { code: "ENOTFOUND" })),
    });
    expect(await failureOf(nobody.request("http://hooks.test/", GET))).toMatchObject({
      message: "its host name has no address",
    });
  });
});

describe("TLS", () => {
  test("is spoken with the name, also where the connection goes to an address", async () => {
    const { port } = await receiver(answers(200), HOOKS_TEST);
    const outbound = createOutbound({ allowPrivate: true, lookup: toLoopback, ca: TEST_CA });
    expect(await outbound.request(`https://hooks.test:${port}/`, GET)).toMatchObject({ status: 200 });
  });

  test("is refused under another name, and from an authority that nobody trusts", async () => {
    const { port, received } = await receiver(answers(200), HOOKS_TEST);
    const trusting = createOutbound({ allowPrivate: true, lookup: toLoopback, ca: TEST_CA });
    expect((await failureOf(trusting.request(`https://other.test:${port}/`, GET))).message).toContain(
      "no secure connection",
    );
    const usual = createOutbound({ allowPrivate: true, lookup: toLoopback });
    expect((await failureOf(usual.request(`https://hooks.test:${port}/`, GET))).message).toContain(
      "no secure connection",
    );
    expect(received).toEqual([]);
  });
});

test("the environment neither puts a proxy in between nor turns the check of certificates off", async () => {
  const proxy = await receiver(answers(200));
  const plain = await receiver(answers(204));
  const secure = await receiver(answers(204), HOOKS_TEST);
  const program = `
    const { createOutbound } = await import("#platform/outbound.ts");
    const outbound = createOutbound({ allowPrivate: true, lookup: async () => ["127.0.0.1"] });
    const options = { method: "GET", timeoutMs: 5000, bodyBytesMax: 10 };
    for (const url of process.argv.slice(1)) {
      await outbound.request(url, options).then(({ status }) => console.log(status), ({ message }) => console.log(message));
    }`;
  const urls = [`http://hooks.test:${plain.port}/`, `https://hooks.test:${secure.port}/`];
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", program, ...urls], {
    env: {
      PATH: process.env["PATH"],
      NODE_USE_ENV_PROXY: "1",
      HTTP_PROXY: proxy.url,
      HTTPS_PROXY: proxy.url,
      NODE_TLS_REJECT_UNAUTHORIZED: "0",
    },
  });
  const [first, second] = stdout.trim().split("\n");
  expect(first).toBe("204");
  expect(second).toContain("no secure connection");
  expect([proxy.received, secure.received]).toEqual([[], []]);
});

test.for<[string, string]>([
  ["ftp://example.com/", "https://example.com/path"],
  ["example.com/hook", "https://example.com/path"],
  ["", "https://example.com/path"],
  ["https://", "https://example.com/path"],
  ["http://user:secret@example.com/", "without a user name"],
  ["https://user@example.com/", "without a user name"],
  [`https://example.com/${"a".repeat(2000)}`, "at most 2000 characters"],
])("%s is no URL to send to", ([url, expected]) => {
  expect(() => checkOutboundUrl(url, "webhook_url", true)).toThrow(expect.objectContaining({ code: "invalid_input" }));
  expect(() => checkOutboundUrl(url, "webhook_url", true)).toThrow(expected);
});

test("a public address, or a name that nobody has looked up yet, may be named", () => {
  for (const url of [
    "https://example.com/hook?token=a",
    "http://8.8.8.8:8080/",
    "https://[2606:4700:4700::1111]/",
    "https://sub.localhost.example.com/",
  ]) {
    expect(() => checkOutboundUrl(url, "url", false)).not.toThrow();
  }
});
