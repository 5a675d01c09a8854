/**
 * The systemd unit: how the agent is started, when it is started again, and what it may do to the machine.
 *
 * It stays root, since a network device and its routes need that, but with two capabilities only, and sees a machine that it cannot write to.
 */
import { EXIT } from "../../state/user_error.ts";

export const UNIT_NAME = "tunnelmesh-agent.service";

/** Starting again changes nothing about these: somebody has to. */
const FINAL = [EXIT.usage, EXIT.keyRefused, EXIT.badConfiguration];

/** @param executable absolute */
export const unitText = (executable: string): string => `[Unit]
Description=TunnelMesh agent
Documentation=man:tunnelmesh-agent(1)
# The agent waits for a network by itself, and names need systemd-resolved where it runs.
After=network.target systemd-resolved.service
# A coordinator may be away for long: never give up.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=${quoted(executable)} up
# One that was killed has left its names in /etc/hosts.
ExecStopPost=-${quoted(executable)} forget-names
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=${FINAL.join(" ")}
# It says good-bye to its peers within a second.
TimeoutStopSec=15

StateDirectory=tunnelmesh
StateDirectoryMode=0700
UMask=0077

# The network device and its routes; port 53 of our own mesh address.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE
AmbientCapabilities=
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK

ProtectSystem=strict
# Names of the mesh, where there is no systemd-resolved.
ReadWritePaths=-/etc/hosts
ProtectHome=yes
PrivateTmp=yes
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
# No MemoryDenyWriteExecute: the program's JavaScript is compiled while it runs.
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
`;

/** systemd.service(5), "Command lines": specifiers begin with "%", and quotes keep a space. */
const quoted = (path: string): string => {
  const escaped = path.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("%", "%%").replaceAll("$", "$$$$");
  return /[\s"'\\]/.test(path) ? `"${escaped}"` : escaped;
};
