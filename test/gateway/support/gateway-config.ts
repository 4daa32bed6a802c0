/** What a gateway under test reads of its configuration, unless a test says otherwise. */
import type { GatewayOptions } from "#gateway/gateway-parts.ts";

export const GATEWAY_CONFIG: GatewayOptions["config"] = {
  AUTH: "on",
  PUBLIC_URL: undefined,
  DEFAULT_MODEL: undefined,
  OPERATOR_TOKEN: undefined,
  GPU_USD_PER_HOUR: 3.95,
  SIGNUP: "off",
  TRUSTED_PROXIES: undefined,
  STRIPE_SECRET_KEY: undefined,
  STRIPE_WEBHOOK_SECRET: undefined,
  STRIPE_API_BASE: undefined,
  OUTBOUND_PRIVATE: "off",
  RETENTION_DAYS: 30,
  DATASETS_UNFINISHED_MAX: 100,
  DATASET_ROWS_UNFINISHED_MAX: 1_000_000,
  DATASET_IDLE_DAYS: 30,
  BACKLOG_MAX_PER_CUSTOMER: 10_000,
  BACKLOG_MAX: 100_000,
  UPLOADS_MAX: 10_000,
  UPLOADS_GB_MAX: 20,
};
