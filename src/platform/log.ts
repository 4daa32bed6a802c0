/** Structured logs on stderr; stdout belongs to what a command prints for its user. Secrets are cut by path and by shape. */
import { type Logger, pino, stdTimeFunctions } from "pino";
import pretty from "pino-pretty";

export type Log = Logger;

export const LOG_LEVELS = ["fatal", "error", "warn", "info", "debug", "trace", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Raw keys of ours and of Stripe, secrets of webhooks (ours are base64), and passwords inside connection URLs, wherever they appear in a line. */
const SECRET_SHAPES =
  /dre_[a-z2-7]{8,}|(?:sk|rk)_[A-Za-z0-9_]{8,}|whsec_[A-Za-z0-9_+/=]{8,}|(?<=:\/\/[^\s:/@]*:)[^\s@/]+(?=@)/g;

export function withoutSecrets(text: string): string {
  return text.replace(SECRET_SHAPES, "[secret]");
}

/** Human-readable on a terminal, JSON lines elsewhere. `name` is the process's role. */
export function createLog(name: string, level: LogLevel): Log {
  const destination = process.stderr.isTTY
    ? pretty({ destination: 2, sync: true, ignore: "pid,hostname,name", singleLine: true, translateTime: "HH:MM:ss" })
    : pino.destination({ dest: 2, sync: true });
  return pino(
    {
      name,
      level,
      timestamp: stdTimeFunctions.isoTime,
      redact: ["req.headers.authorization", "headers.authorization", "*.api_key", "*.token"],
      hooks: { streamWrite: withoutSecrets },
    },
    destination,
  );
}
