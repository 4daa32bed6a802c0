import { createHash, createHmac } from "node:crypto";

import { expect, test } from "vitest";

import { makeLoginRole } from "#cli/login-roles.ts";
import { scramVerifier } from "#platform/scram.ts";

/** The exchange printed in RFC 7677, section 3: user "user", password "pencil". */
const RFC = {
  salt: "W22ZaJ0SNY7soEsUEjb6gQ==",
  messages:
    "n=user,r=rOprNGfwEbeRWgbNEkqO," +
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096," +
    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
  clientProof: "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
  serverSignature: "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
};

const zeros = (size: number): Uint8Array => new Uint8Array(size);

const hmac = (key: Buffer): Buffer => createHmac("sha256", key).update(RFC.messages).digest();

test("a server that keeps the verifier accepts the RFC's client, and the client that server", () => {
  const verifier = scramVerifier("pencil", () => Buffer.from(RFC.salt, "base64"));
  const [, salt, stored = "", server = ""] = /^SCRAM-SHA-256\$4096:(.+)\$(.+):(.+)$/.exec(verifier) ?? [];
  expect(salt).toBe(RFC.salt);
  const signature = hmac(Buffer.from(stored, "base64"));
  const clientKey = Buffer.from(RFC.clientProof, "base64").map((byte, i) => byte ^ (signature[i] ?? 0));
  expect(createHash("sha256").update(clientKey).digest("base64")).toBe(stored);
  expect(hmac(Buffer.from(server, "base64")).toString("base64")).toBe(RFC.serverSignature);
});

test("what a client might prepare otherwise is refused, and no statement holds a password", async () => {
  for (const wrong of ["", "pässword-of-sixteen", "tab\tin a password"]) {
    expect(() => scramVerifier(wrong, zeros)).toThrow("expected a password of printable ASCII");
  }
  const statements: string[] = [];
  const query = async <Row>(text: string): Promise<Row[]> => {
    statements.push(text);
    return [];
  };
  await makeLoginRole({ query }, "dream_gateway", "correct horse battery", zeros);
  expect(statements.join("\n")).toContain("SCRAM-SHA-256$");
  expect(statements.join("\n")).not.toContain("correct horse");
});
