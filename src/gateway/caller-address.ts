/** Whose address a limit counts: of IPv6 the /64, because that is what one household or machine is given whole. */
import { isIPv6 } from "node:net";

const IPV4_MAPPED = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i;
const GROUPS = 8;
const NETWORK_GROUPS = 4;

const groupsOf = (text: string | undefined): string[] => (text ? text.split(":") : []);

/** `ip` as Fastify has it (`request.ip`); IPv4 stays as it is, IPv6 becomes its network, `2001:db8:0:1::/64`. */
export function callerAddress(ip: string): string {
  const mapped = IPV4_MAPPED.exec(ip)?.[1];
  if (mapped !== undefined) return mapped;
  if (!isIPv6(ip)) return ip;
  const [head = "", tail] = ip.split("%", 1)[0]?.split("::") ?? [];
  const [before, after] = [groupsOf(head), groupsOf(tail)];
  const zeros = Array.from({ length: Math.max(GROUPS - before.length - after.length, 0) }, () => "0");
  const network = [...before, ...(tail === undefined ? [] : zeros), ...after].slice(0, NETWORK_GROUPS);
  return `${network.map((group) => Number.parseInt(group, 16).toString(16)).join(":")}::/64`;
}
