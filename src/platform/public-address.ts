/** Which addresses are of the public internet, and how a URL spells one. */
import { isIP } from "node:net";

import ipaddr from "ipaddr.js";

/** 2000::/3 is all that has been given out; what lies outside (IPv4-compatible ::/96 among it) leads nowhere public. */
const IPV6_GLOBAL = ipaddr.IPv6.parseCIDR("2000::/3");

/** Public by its number, and yet answered inside a machine of Azure: the agent that gives out its credentials. */
const AZURE_WIRE_SERVER = "168.63.129.16";

/** Unicast, and of none of the ranges for private use, for tests, or through which an IPv4 address is reached. */
export function isPublic(address: string): boolean {
  if (!ipaddr.isValid(address) || address === AZURE_WIRE_SERVER) return false;
  const parsed = ipaddr.parse(address);
  if (parsed.range() !== "unicast") return false;
  return parsed.kind() === "ipv4" || parsed.match(IPV6_GLOBAL);
}

/**
 * The address that stands in the place of a name in a URL, null where it is a name. URL has brought decimal, octal and
 * hexadecimal spellings of IPv4 into the usual one; IPv6 stands in brackets.
 */
export function literalOf(hostname: string): string | null {
  const bare = hostname.startsWith("[") ? hostname.slice(1, -1) : hostname;
  return isIP(bare) === 0 ? null : bare;
}

export const isLocalName = (hostname: string): boolean => /(^|\.)localhost\.?$/.test(hostname);
