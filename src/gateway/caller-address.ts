/** Whose address a limit counts: of IPv6 the /64, because that is what one household or machine is given whole. */
import { isIPv4, isIPv6 } from "node:net";

const GROUPS = 8;
const NETWORK_GROUPS = 4;
/** Their last 32 bits are an IPv4 address: IPv4-mapped, and what NAT64 makes of one (RFC 6052). */
const IPV4_INSIDE = ["0:0:0:0:0:ffff", "64:ff9b:0:0:0:0"];

/** `ip` as Fastify has it (`request.ip`); IPv4 stays as it is, IPv6 becomes its network, `2001:db8:0:1::/64`. */
export function callerAddress(ip: string): string {
  if (!isIPv6(ip)) return ip;
  const groups = groupsOf(ip);
  const text = (from: number, to: number): string =>
    groups
      .slice(from, to)
      .map((group) => group.toString(16))
      .join(":");
  if (IPV4_INSIDE.includes(text(0, 6))) {
    return groups
      .slice(6)
      .flatMap((group) => [group >> 8, group & 0xff])
      .join(".");
  }
  return `${text(0, NETWORK_GROUPS)}::/64`;
}

/** All eight, whatever the spelling: `::`, a zone (`%eth0`), an IPv4 address at the end. */
function groupsOf(ip: string): number[] {
  const [head = "", tail] = ip.split("%", 1)[0]?.split("::") ?? [];
  const [before, after] = [numbersOf(head), numbersOf(tail ?? "")];
  const zeros = Array.from({ length: Math.max(GROUPS - before.length - after.length, 0) }, () => 0);
  return [...before, ...(tail === undefined ? [] : zeros), ...after];
}

function numbersOf(text: string): number[] {
  if (text === "") return [];
  return text.split(":").flatMap((group) => {
    if (!isIPv4(group)) return [Number.parseInt(group, 16)];
    const [a = 0, b = 0, c = 0, d = 0] = group.split(".").map(Number);
    return [a * 256 + b, c * 256 + d];
  });
}
