#!/usr/bin/env bash
# Installs pvehook on a Proxmox VE node and removes it again; starts the demo and the tests (scripts/).
#
# Read `install_pvehook` and `uninstall_pvehook` first: each is the whole story, one verb per line. Whatever changes the system goes
# through `change`, which prints one line before it acts and only that line under --check.
#
# What uninstalling needs is kept under /var/lib/pvehook/install:
#     NAME.before    the file as it was (missing: there was no file)
#     NAME.after     the file as pvehook left it, so that a later edit by the admin can be told from our own
# for NAME vzdump.conf and pvehook.yaml. A file that is still NAME.after becomes NAME.before again, byte for byte;
# from one that was edited since, only our lines are removed.
set -Eeuo pipefail
shopt -s inherit_errexit
umask 022
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin # absent for a plain user, and after `su` without a dash

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly repo
if [[ ! -f $repo/scripts/debian_packages.sh ]]; then
    echo "pvehook: error: $repo/scripts/debian_packages.sh is missing: this is not a complete copy of pvehook" >&2
    exit 2
fi
# shellcheck source-path=SCRIPTDIR source=scripts/debian_packages.sh
source "$repo/scripts/debian_packages.sh"

readonly node_packages=(python3 python3-psutil python3-yaml python3-structlog)
readonly units=(pvehook.socket pvehook.service pvehook-notify.socket pvehook-notify@.service)
readonly sockets=(pvehook.socket pvehook-notify.socket)

# Paths as the node spells them; `$root` in front of them is empty on the node itself.
readonly lib=/usr/local/lib/pvehook
readonly hook=$lib/hooks/vzdump-hook
readonly snippet=pvehook-guest-hook # what the guest hook is called in a storage
readonly command=/usr/local/bin/pvehook
readonly unit_dir=/usr/local/lib/systemd/system
readonly socket_links=/etc/systemd/system/sockets.target.wants
readonly templates=/usr/share/pve-manager/templates/default # where Proxmox finds those of its notifications
readonly vzdump_conf=/etc/vzdump.conf
readonly node_yaml=/etc/pvehook.yaml
readonly cluster_yaml=/etc/pve/pvehook.yaml
readonly jobs_cfg=/etc/pve/jobs.cfg
readonly record=/var/lib/pvehook/install

# shellcheck disable=SC2016 # awk's $0
readonly awk_value_of='function value_of(key, text) {
    text = $0
    if (text !~ "^[ \t]*" key ":") return "\n" # no value has one
    sub(/^[^:]*:[ \t]*/, "", text); sub(/[ \t\r]+$/, "", text)
    return text
}
'

root='' offline='' check='' force='' purge='' max_workers=''
changes=0
stage=''   # where the program is assembled before it is compared and installed
renewed='' # which parts of a running daemon were replaced under it

usage() {
    cat <<'END'
install.sh: installs pvehook, which keeps Proxmox VE backups from freezing the guests of this node

  ./install.sh               install on this node or update it (root; Proxmox VE 8 or 9)
  ./install.sh --check       print what would be done, change nothing; also with --uninstall and --root
  ./install.sh --uninstall   restore everything, including the script and ionice that vzdump.conf had before
  ./install.sh --uninstall --purge   also remove /etc/pvehook.yaml, the history and the running state
  ./install.sh --max-workers N   install, and let each backup have N requests in flight (Proxmox: 16):
                             `performance: max-workers=N` in /etc/vzdump.conf; an existing value stays
  ./install.sh --force       install although this is not Proxmox VE 8 or 9 on Debian 12 or 13
  ./install.sh --root DIR    the same in a directory tree (image builds, tests): no apt, systemctl or root
  ./install.sh --demo        any Linux, no root: play one night in a private environment (.venv) and show it
  ./install.sh --test [--quick] [...]   install what the tests need and run them; --quick: without real
                             Debian systems, QEMU guests and the longest ones; other arguments go to pytest
  ./install.sh --help        this page

What goes where: the program to /usr/local/lib/pvehook, the command to /usr/local/bin/pvehook, units to
/usr/local/lib/systemd/system, templates to /usr/share/pve-manager/templates/default; `script:` and
`ionice: 8` into /etc/vzdump.conf; every other line stays. A script that is set there already is chained:
`chain:` in /etc/pvehook.yaml, run as vzdump ran it.

Exit code: 0 done, or nothing to change; with --check 1 if something would change; 2 on an error. After an
error, a second run finishes what is left. --test exits with pytest's code.
END
}

main() {
    local action=install
    while (($#)); do
        case $1 in
            --check) check=1 ;;
            --force) force=1 ;;
            --purge) purge=1 ;;
            --uninstall) action=uninstall ;;
            --max-workers) max_workers=${2:?--max-workers needs a number} && shift ;;
            --max-workers=*) max_workers=${1#*=} ;;
            --root) offline=1 root=${2:?--root needs a directory} && shift ;;
            --root=*) offline=1 root=${1#*=} ;;
            --demo) exec "$repo/scripts/demo" ;;
            --test) shift && exec "$repo/scripts/test" "$@" ;;
            --help | -h) usage && exit 0 ;;
            *) die "unknown argument: $1 (--help shows all of them)" ;;
        esac
        shift
    done
    [[ -z $purge || $action == uninstall ]] || die "--purge goes with --uninstall"
    [[ -z $max_workers || $action == install ]] || die "--max-workers goes with an installation"
    [[ -z $max_workers || $max_workers =~ ^([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-6])$ ]] ||
        die "--max-workers $max_workers: a number from 1 to 256 was expected"
    trap '[[ -z $stage ]] || rm -rf "$stage"' EXIT
    if [[ -n $offline ]]; then
        [[ -d $root ]] || die "--root $root: no such directory"
        root=$(cd "$root" && pwd -P)
        root=${root%/} # `--root /` is an image build from inside the image
        require_inside_root
    fi
    case $action in
        install) install_pvehook ;;
        uninstall) uninstall_pvehook ;;
    esac
}

# ---------------------------------------------------------------------------------------------- install

install_pvehook() {
    require_system
    require_free_way
    install_packages
    install_program
    install_command
    install_templates
    install_units
    end_old_daemon
    open_sockets
    remember_configuration
    chain_their_script
    point_vzdump_at_the_hook
    limit_workers
    list_jobs_that_win
    check_configuration
    conclude "pvehook $(version) is installed" "install"
    say "next: what else makes backups stall or get lost on this node, and what fixes it: pvehook doctor"
    offer_max_workers
    offer_guest_hook
}

require_system() {
    local name=unknown number=unknown pve
    [[ -n $offline || $EUID == 0 ]] || die "only root can install on this node (without root: --demo)"
    if [[ -r $root/etc/os-release ]]; then
        name=$(sed -n 's/^ID=//p' "$root/etc/os-release" | tr -d '"')
        number=$(sed -n 's/^VERSION_ID=//p' "$root/etc/os-release" | tr -d '"')
    fi
    case $name-$number in
        debian-12 | debian-13) ;;
        unknown-unknown) [[ -n $offline ]] || unfit "there is no /etc/os-release: Debian 12 or 13 was expected" ;;
        *) unfit "this is $name $number: Debian 12 or 13 was expected" ;;
    esac
    [[ -z $offline ]] || return 0
    [[ -d /run/systemd/system ]] || die "systemd does not run here; for an image build use --root /"
    pve=$(dpkg-query -W -f '${Version}' pve-manager 2>/dev/null || true)
    case $pve in
        8.* | 9.*) ;;
        *) unfit "pve-manager is ${pve:-not installed}: Proxmox VE 8 or 9 was expected" ;;
    esac
}

# A symbolic link with an absolute target leads from an image to the machine that builds it.
require_inside_root() {
    local path real
    for path in "${lib%/*}" "${command%/*}" "$unit_dir" "$socket_links" "$templates" "$record" /etc/{os-release,pve,cron.d,crontab} \
        /etc/pve/{qemu-server,vzdump.cron} "$jobs_cfg" "$cluster_yaml" /var/spool/cron/crontabs /run/pvehook; do
        real=$(realpath -m "$root$path")
        [[ $real/ == "$root"/* ]] || die "$root$path leads out of --root to $real (a symbolic link); nothing was changed"
    done
}

# What would stop the installation half way is found before anything is changed.
require_free_way() {
    local file link theirs chained at
    for file in hooks/{vzdump-hook,guest-hook,notify,pvehook,pvehook.example.yaml,grafana-dashboard.json} \
        hooks/{prometheus-alerts.yaml,systemd/restart-pause} README.md docs/limits.md "${units[@]/#/hooks/systemd/}" \
        hooks/templates/pvehook-{subject.txt,body.txt,body.html}.hbs; do
        [[ -f $repo/$file ]] || die "$repo/$file is missing: this is not a complete copy of pvehook"
    done
    for file in "$vzdump_conf" "$node_yaml"; do
        [[ ! -L $root$file ]] || die "$root$file is a symbolic link; pvehook changes plain files only"
    done
    link=$(readlink "$root$command" || true)
    [[ ! -e $root$command && -z $link || $link == "../lib/pvehook/bin/pvehook" ]] ||
        die "$root$command exists and is not pvehook's; move it away first"
    theirs=$(their_script)
    [[ -n $theirs ]] || return 0
    ! grep -qsF "$hook" "$root$theirs" ||
        die "$theirs (script: in $vzdump_conf) calls $hook itself: chained, each would call the other." \
            "Set script: to $hook and chain: to what else your script does, then run this again"
    for at in "$node_yaml" "$cluster_yaml"; do
        chained=$(chain_in "$at")
        [[ -z $chained || $chained == "$theirs" ]] ||
            die "$vzdump_conf runs $theirs, but $at already chains $chained, and pvehook chains one script." \
                "Let one call the other, or remove one of the two, then run this again"
    done
    [[ -f $root$theirs && -x $root$theirs ]] ||
        say "note: $theirs (script: in $vzdump_conf) is not an executable file; it is chained anyway"
}

install_packages() {
    local missing
    [[ -z $offline ]] || return 0
    read -ra missing <<<"$(missing_packages "${node_packages[@]}")"
    ((${#missing[@]} == 0)) || change "install Debian packages: ${missing[*]}" apt_install "${missing[@]}"
}

install_program() {
    build_program
    if [[ "$(listing "$stage")" == "$(listing "$root$lib")" ]] &&
        diff -rq --exclude=__pycache__ "$stage" "$root$lib" >/dev/null; then
        return 0
    fi
    change "install the program, its bytecode, its documentation and the example configuration in $lib" copy_program
    renewed+=" program"
}

# Assembles in $stage what belongs in $lib.
build_program() {
    local source target mode python
    stage=$(mktemp -d)
    while read -r source target mode; do
        install -D -m "$mode" "$repo/$source" "$stage/$target"
    done < <(program_files)
    find "$stage" -type d -exec chmod 755 {} +
    python=$(node_python) || return 0
    # By hash and not by time, so that the bytecode stays valid in images whose files all get one time.
    "$python" -I -m compileall -q --invalidation-mode checked-hash -s "$stage" -p "$lib" "$stage/pvehook"
}

node_python() { # the Python that runs pvehook; none if --check finds none: it would be installed
    local python=python3
    [[ -n $offline ]] || python=/usr/bin/python3
    [[ -z $check ]] || command -v "$python" >/dev/null || return 1
    echo "$python"
}

program_files() { # one line each: where in the repository, where under $lib, mode
    echo hooks/vzdump-hook hooks/vzdump-hook 755
    echo hooks/guest-hook hooks/guest-hook 755
    echo hooks/notify hooks/notify 755
    echo hooks/systemd/restart-pause hooks/restart-pause 755
    echo hooks/pvehook bin/pvehook 755
    echo hooks/pvehook.example.yaml pvehook.example.yaml 644
    echo hooks/grafana-dashboard.json grafana-dashboard.json 644
    echo hooks/prometheus-alerts.yaml prometheus-alerts.yaml 644
    echo README.md README.md 644
    (cd "$repo" && find pvehook docs -name __pycache__ -prune -o -type f -printf '%p %p 644\n')
}

listing() { # what is under a directory, with types and modes
    [[ ! -d $1 ]] || find "$1" -printf '%P %y %m\n' | sort
}

copy_program() {
    rm -rf "$root$lib.new"
    mkdir -p "$root${lib%/*}"
    cp -a "$stage" "$root$lib.new"
    [[ $EUID != 0 ]] || chown -R 0:0 "$root$lib.new"
    if [[ ! -d $root$lib ]]; then
        mv -T "$root$lib.new" "$root$lib"
    elif exchange "$root$lib.new" "$root$lib"; then
        rm -rf "$root$lib.new"
    else # a file system without RENAME_EXCHANGE: for the moment between two renames there is no program
        rm -rf "$root$lib.old"
        mv -T "$root$lib" "$root$lib.old"
        mv -T "$root$lib.new" "$root$lib"
        rm -rf "$root$lib.old"
    fi
}

# Swaps two directories in one step (renameat2, flag RENAME_EXCHANGE), so that the next phase of a running backup
# finds either the old program or the new one, whole. mv can do it only from coreutils 9.5 on.
exchange() {
    python3 -I -c 'import ctypes, os, sys
old, new = map(os.fsencode, sys.argv[1:])
sys.exit(ctypes.CDLL(None).renameat2(-100, old, -100, new, 2) != 0)' "$1" "$2"
}

install_command() {
    [[ -L $root$command ]] || change "link the command $command" link_command
}

link_command() {
    mkdir -p "$root${command%/*}"
    ln -s ../lib/pvehook/bin/pvehook "$root$command"
}

install_templates() {
    local source
    for source in "$repo"/hooks/templates/*.hbs; do
        cmp -s "$source" "$root$templates/${source##*/}" ||
            change "install $templates/${source##*/}" install -D -m 644 "$source" "$root$templates/${source##*/}"
    done
}

install_units() {
    local unit
    for unit in "${units[@]}"; do
        cmp -s "$repo/hooks/systemd/$unit" "$root$unit_dir/$unit" && continue
        change "install $unit_dir/$unit" \
            install -D -m 644 "$repo/hooks/systemd/$unit" "$root$unit_dir/$unit"
        renewed+=" $unit"
    done
    if [[ -z $offline && $renewed == *pvehook* ]]; then
        change "reload systemd's units" systemctl daemon-reload
    fi
}

# The daemon exits by itself when it has nothing to watch; until then it runs the version it was started with.
end_old_daemon() {
    local worker
    [[ -z $offline && -n $renewed ]] || return 0
    # One that waits after failures is ended too: the new version starts at once.
    [[ $(systemctl show --value --property=ActiveState pvehook.service) != inactive ]] || return 0
    worker=$(running_worker)
    if [[ -n $worker ]]; then
        say "note: a backup is running (pid $worker), so the daemon is not restarted; its next start uses the new version"
    else
        change "stop the idle daemon; the next backup starts the new one" systemctl stop pvehook.service
    fi
}

open_sockets() {
    local socket
    for socket in "${sockets[@]}"; do
        if [[ -n $offline ]]; then
            [[ -L $root$socket_links/$socket ]] || change "enable $socket" link_socket "$socket"
        elif ! systemctl is-enabled --quiet "$socket" 2>/dev/null || ! systemctl is-active --quiet "$socket"; then
            change "enable and start $socket" systemctl enable --quiet --now "$socket"
        elif [[ $renewed == *$socket* ]] && ! systemctl is-active --quiet pvehook.service; then
            change "restart the changed $socket" systemctl restart "$socket"
        fi
    done
}

link_socket() { # SOCKET
    mkdir -p "$root$socket_links"
    ln -s "$unit_dir/$1" "$root$socket_links/$1"
}

# A configuration that was there before the first installation survives even --purge.
remember_configuration() {
    [[ -z $check && ! -d $root$record ]] || return 0
    mkdir -p "$root$record"
    [[ ! -e $root$node_yaml ]] || cp -p "$root$node_yaml" "$root$record/${node_yaml##*/}.before"
}

# `script:` can name one file only. pvehook runs theirs as vzdump did.
chain_their_script() {
    local theirs
    theirs=$(their_script)
    [[ -z $theirs || $(chain_in "$node_yaml") == "$theirs" || $(chain_in "$cluster_yaml") == "$theirs" ]] ||
        change "chain $theirs (until now script: in $vzdump_conf) in $node_yaml" write_chain "$theirs"
}

write_chain() {
    local quoted=\'${1//\'/\'\'}\'
    [[ $1 =~ [^A-Za-z0-9._/+-] ]] || quoted=$1
    put_lines "$node_yaml" "chain: $quoted"
}

point_vzdump_at_the_hook() {
    local script ionice
    script=$(conf_value script "$root$vzdump_conf")
    ionice=$(conf_value ionice "$root$vzdump_conf")
    [[ $script == "$hook" && $ionice == 8 ]] ||
        change "set script: $hook and ionice: 8 in $vzdump_conf (now ${script:-no script}, ionice ${ionice:-not set})" \
            put_lines "$vzdump_conf" "script: $hook" "ionice: 8"
}

# How backups are made is the administrator's decision: only on request, and never over an existing value.
limit_workers() {
    local set_already
    [[ -n $max_workers ]] || return 0
    set_already=$(conf_value performance "$root$vzdump_conf")
    if [[ -z $set_already ]]; then
        change "set performance: max-workers=$max_workers in $vzdump_conf: a request of a VM then waits for at most\
 $max_workers requests of its backup, instead of Proxmox's 16" \
            put_lines "$vzdump_conf" "script: $hook" "ionice: 8" "performance: max-workers=$max_workers"
    elif [[ ,$set_already, != *,max-workers=$max_workers,* ]]; then
        say "note: $vzdump_conf already has performance: $set_already, which stays; to change it, add" \
            "max-workers=$max_workers to that line"
    fi
}

offer_max_workers() {
    [[ -z $(conf_value performance "$root$vzdump_conf") ]] || return 0
    say "optional: VMs stall least when their backup has one request in flight; Proxmox's default is 16." \
        "To set it: ./install.sh --max-workers 1"
}

# A job's own setting is often there for a reason: it is shown, not changed. A run with its own script never calls us.
list_jobs_that_win() {
    local job setting remedy
    node_python >/dev/null || return 0
    while IFS=$'\t' read -r job setting remedy; do
        say "note: $job has its own $setting, which overrides $vzdump_conf; to remove it: $remedy"
    done < <(jobs_with_own_settings)
}

jobs_with_own_settings() { # one line for each setting of a job or of a line of cron: job, key and value, remedy
    "$(node_python)" -IBc '
import sys
sys.path.insert(0, sys.argv[1])
from pvehook.host.backup_jobs import all_jobs
from pvehook.contract.text import printable
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
try:
    jobs = all_jobs(Node(sys.argv[2]), TimelyReader())
except NodeError as error:
    sys.exit(f"pvehook: note: jobs with a script or ionice of their own are not listed: {error}")
for job in jobs:
    for key, wanted in (("script", sys.argv[3]), ("ionice", "8")):
        value = job.options.get(key, wanted)
        if value != wanted:
            remedy = f"pvesh set /cluster/backup/{job.id} --delete {key}"
            remedy = f"take --{key} out of that line" if job.is_cron else remedy
            print(("" if job.is_cron else "job ") + job.id, key + " " + printable(value, 200), remedy, sep="\t")
' "$repo" "${root:-/}" "$hook"
}

# A VM takes one hookscript, and only from a storage: that is the administrator's decision.
offer_guest_hook() {
    say "optional: to have VMs thawed first when they are shut down while their backup has them frozen, give them" \
        "pvehook's hookscript; one that a VM has already is still run:"
    say "    pvehook guests hookscript enable --all"
}

# An invalid configuration stops no backup, so it stops no installation either; but now is the time to report it.
check_configuration() {
    [[ -z $offline && -z $check ]] || return 0
    "$command" config check >/dev/null ||
        say "note: until that is fixed, pvehook runs with its last good configuration, or with the built-in one"
}

# -------------------------------------------------------------------------------------------- uninstall

uninstall_pvehook() {
    local worker
    [[ -n $offline || $EUID == 0 ]] || die "only root can uninstall on this node"
    worker=$(running_worker)
    # Its remaining guests still call the hook: without configuration and state it would apply the built-in window.
    [[ -z $purge || -z $worker ]] ||
        die "a backup is running (pid $worker), and its hook still needs configuration and state;" \
            "run --uninstall --purge again when it has ended (--uninstall alone can be run now)"
    list_fixes_that_stay
    restore "$vzdump_conf" script ionice performance
    drop_unrecorded_script
    [[ -n $purge ]] || restore "$node_yaml" chain
    remove_units
    remove_templates
    [[ ! -L $root$command ]] || change "remove the command $command" rm "$root$command"
    remove_program "$worker"
    [[ -z $purge ]] || purge_configuration
    [[ ! -d $root$record ]] || change "remove the record of the installation's changes ($record)" rm -r "$root$record"
    [[ -z $purge ]] || purge_history
    [[ -n $check ]] || rmdir --ignore-fail-on-non-empty "$root${record%/*}" 2>/dev/null || true
    [[ -n $purge || -n $check || ! -e $root$node_yaml ]] || say "kept: $node_yaml, with your changes; remove it by hand if you want"
    [[ -z $purge || ! -e $root$cluster_yaml ]] || say "kept: $cluster_yaml, which belongs to the whole cluster"
    list_vms_with_guest_hook
    conclude "pvehook is not installed" "uninstall"
}

# A guest whose hookscript is missing does not start, so a copy in a storage is never removed here. Alone it does
# nothing, or runs the guest's own hookscript, whose name stands behind ours.
list_vms_with_guest_hook() {
    local config script set what undo
    while IFS= read -r config; do
        script=$(sed -nE '/^\[/q; s/^hookscript:[ \t]*//p' "$config") # what follows a [ is a snapshot
        [[ -n $script ]] || continue
        set="qm set" what=VM undo="--delete hookscript"
        [[ $config != */lxc/* ]] || { set="pct set" what=CT; }
        [[ $script != *"/$snippet."* ]] || undo="--hookscript ${script/$snippet./}"
        config=${config##*/}
        say "note: $what ${config%.conf} still runs ${script##*/}, which does nothing of its own now; first take it" \
            "off the guest, then remove the snippet: $set ${config%.conf} $undo"
    done < <({ timeout 5 grep -lsE "^hookscript:.*$snippet" -r "$root/etc/pve/qemu-server" "$root/etc/pve/lxc" \
        --include='*.conf' || true; } | sort) # without such a guest grep fails
}

# Of `pvehook doctor --fix`: what it changed is of use without pvehook too, so it is not taken back here.
list_fixes_that_stay() {
    local ids
    ids=$(cd "$root${record%/*}/fixes" 2>/dev/null && printf '%s\n' PVH-*.json |
        sed -nE 's/^(PVH-[0-9]+)\..*/\1/p' | sort -u | tr '\n' ' ') || true
    [[ -z $ids ]] || say "note: what \`pvehook doctor --fix\` changed stays: ${ids% };" \
        "\`pvehook doctor --unfix ID\` takes it back as long as pvehook is installed"
}

# Removes our lines for the given keys from a file that put_lines changed.
restore() { # FILE KEY...
    local file=$1 before after
    before=$root$record/${file##*/}.before after=$root$record/${file##*/}.after
    [[ -f $after && -f $root$file ]] || return 0
    if cmp -s "$root$file" "$after"; then
        if [[ -e $before ]]; then
            change "restore $file as it was" copy_over "$before" "$root$file"
        else
            change "remove $file, which was not there before" rm "$root$file"
        fi
    elif ! without_our_lines "$@" | cmp -s - "$root$file"; then
        change "remove pvehook's lines from $file, which was edited since; the edits stay" take_lines "$@"
    fi
}

# Set by hand, or the record is lost: a script: that names a removed file would fail every backup job, now or as soon as
# the line after it that counts today is removed.
drop_unrecorded_script() {
    [[ -f $root$vzdump_conf && ! -f $root$record/${vzdump_conf##*/}.after ]] || return 0
    [[ -z $(lines_with script "$hook" <"$root$vzdump_conf") ]] ||
        change "remove script: $hook from $vzdump_conf; there is no record of what was there before" \
            take_lines "$vzdump_conf" script
}

take_lines() { # FILE KEY...
    without_our_lines "$@" | write_file "$root$1"
    [[ -s $root$1 ]] || rm "$root$1"
}

remove_units() {
    local unit socket present=''
    for unit in "${units[@]}"; do [[ ! -e $root$unit_dir/$unit ]] || present+=" $unit_dir/$unit"; done
    if [[ -n $offline ]]; then
        for socket in "${sockets[@]}"; do
            [[ ! -L $root$socket_links/$socket ]] || change "disable $socket" unlink_socket "$socket"
        done
    elif [[ -n $present ]]; then
        change "stop pvehook and disable ${sockets[*]}" stop_units
    fi
    [[ -n $present ]] || return 0
    change "remove$present" delete_units
    [[ -n $offline ]] || change "reload systemd's units" systemctl daemon-reload
}

unlink_socket() { # SOCKET
    rm "$root$socket_links/$1"
    rmdir --ignore-fail-on-non-empty "$root$socket_links"
}

stop_units() {
    local socket
    for socket in "${sockets[@]}"; do
        [[ ! -e $unit_dir/$socket ]] || systemctl disable --quiet --now "$socket"
    done
    systemctl stop pvehook.service 'pvehook-notify@*.service'
}

delete_units() {
    rm -f "${units[@]/#/$root$unit_dir/}"
    rmdir --ignore-fail-on-non-empty "$root$unit_dir" "$root${unit_dir%/*}" 2>/dev/null || true
}

remove_templates() {
    local template
    for template in "$root$templates"/pvehook-*.hbs; do
        [[ ! -e $template ]] || change "remove ${template#"$root"}" rm "$template"
    done
    # On a node they are Proxmox's; an image build may have had none.
    [[ -n $check || ! -d $root$templates ]] ||
        (cd "$root/" && rmdir -p --ignore-fail-on-non-empty "${templates#/}" 2>/dev/null) || true
}

# A running vzdump has read its `script:` already; without the file, each further guest would fail. The hook answers
# every phase without the daemon too.
remove_program() { # PID of a running vzdump worker, or nothing
    [[ -e $root$lib || -e $root$lib.new || -e $root$lib.old ]] || return 0 # .new, .old: of a run that was killed
    if [[ -n $1 ]]; then
        say "note: a backup is running (pid $1) and still calls $hook, so $lib stays for now;" \
            "run this again when that backup has ended"
        return 0
    fi
    change "remove the program $lib" rm -rf "$root$lib"{,.new,.old}
    [[ -n $offline || ! -e /run/pvehook ]] || change "remove the running state /run/pvehook" rm -r /run/pvehook
}

purge_configuration() {
    local before=$root$record/${node_yaml##*/}.before
    [[ -e $root$node_yaml ]] || return 0
    if [[ ! -d $root$record ]]; then
        say "kept: $node_yaml; there is no record that it came with pvehook, so remove it by hand if you want"
    elif [[ ! -e $before ]]; then
        change "remove the configuration $node_yaml" rm "$root$node_yaml"
    elif ! cmp -s "$before" "$root$node_yaml"; then
        change "restore $node_yaml as it was before pvehook was installed" copy_over "$before" "$root$node_yaml"
    fi
}

purge_history() {
    local directory
    for directory in "${record%/*}" /run/pvehook; do
        [[ ! -e $root$directory ]] || change "remove $directory and its contents" rm -r "$root$directory"
    done
}

# ------------------------------------------------------------- lines of vzdump.conf and pvehook.yaml

# Sets lines `key: value` in a file, each in place of the line that counts now or else at the end, and keeps what
# `restore` needs. The record is written first: killed in between, the file is as it was.
put_lines() { # FILE LINE...
    local file=$1 line wanted before after
    shift
    before=$root$record/${file##*/}.before after=$root$record/${file##*/}.after
    mkdir -p "$root$record"
    if [[ -e $after && -e $root$file ]] && cmp -s "$root$file" "$after"; then
        : # ours already, as we left it: what was before is known to the byte
    elif [[ -e $after && -e $root$file ]]; then # installed before, then edited: our lines are not part of "before"
        without_our_lines "$file" "${@%%:*}" | write_file "$before"
        [[ -s $before ]] || rm "$before"
    elif [[ -e $root$file ]]; then
        copy_over "$root$file" "$before"
    fi
    wanted=$([[ ! -e $root$file ]] || cat "$root$file" && echo .) # the dot keeps the line ends that $(...) would drop
    for line in "$@"; do
        wanted=$(printf '%s' "${wanted%.}" | set_line "${line%%:*}" "$line" && echo .)
    done
    printf '%s' "${wanted%.}" | write_file "$after"
    write_file "$root$file" <"$after"
}

without_our_lines() { # FILE KEY...: the file as it would be without pvehook
    local file=$1 key ours before after text
    before=$root$record/${file##*/}.before after=$root$record/${file##*/}.after
    text=$(cat "$root$file" && echo .) # the dot as in put_lines
    for key in "${@:2}"; do
        ours=$(conf_value "$key" "$after")
        # What we did not set is the administrator's, who may have set it since.
        [[ -z $ours ]] || text=$(printf '%s' "${text%.}" | return_line "$key" "$ours" \
            "$(lines_with "$key" "$ours" <"$after" | wc -l)" "$(conf_line "$key" "$before")" && echo .)
        # A second one, or one that was set by hand: without the program it would fail every backup.
        [[ $key != script ]] || text=$(printf '%s' "${text%.}" | drop_lines script "$hook" && echo .)
    done
    printf '%s' "${text%.}"
}

# The last line of stdin with this key becomes NEW; without such a line NEW is added at the end.
set_line() { # KEY NEW
    new=$2 awk -v key="$1" '
        { line[NR] = $0 }
        $0 ~ "^[ \t]*" key ":" { last = NR }
        END {
            if (!last) last = ++NR
            line[last] = ENVIRON["new"]
            for (i = 1; i <= NR; i++) print line[i]
        }'
}

# The NTH line of stdin with this key and value (the last if there are fewer) becomes NEW; nothing: it is removed.
return_line() { # KEY VALUE NTH NEW
    value=$2 new=$4 awk -v key="$1" -v nth="$3" "$awk_value_of"'
        { line[NR] = $0 }
        value_of(key) == ENVIRON["value"] && ++found <= nth { ours = NR }
        END {
            for (i = 1; i <= NR; i++)
                if (i != ours) print line[i]
                else if (ENVIRON["new"] != "") print ENVIRON["new"]
        }'
}

lines_with() { # KEY VALUE
    value=$2 awk -v key="$1" "$awk_value_of"'value_of(key) == ENVIRON["value"]'
}

drop_lines() { # KEY VALUE
    value=$2 awk -v key="$1" "$awk_value_of"'value_of(key) != ENVIRON["value"]'
}

conf_line() { # KEY FILE: the line that counts, which is the last (PVE::JSONSchema::parse_config)
    [[ ! -f $2 ]] || read_timely "$2" | { grep -E "^[[:space:]]*$1:" || true; } | tail -n 1
}

conf_value() { # KEY FILE
    conf_line "$@" | sed -E 's/^[[:space:]]*[a-z]+:[[:space:]]*//; s/[[:space:]]+$//'
}

their_script() { # the script: that vzdump runs now, if it is not ours
    local script
    script=$(conf_value script "$root$vzdump_conf")
    [[ $script == "$hook" || $root$script -ef $root$hook ]] || printf '%s' "$script"
}

chain_in() { # FILE: the script that a configuration chains already, if any
    conf_value chain "$root$1" |
        sed -E "s/[[:space:]]+#.*//; s/^(null|Null|NULL|~)\$//; s/^([\"'])(.*)\\1\$/\\2/; s/''/'/g"
}

# ------------------------------------------------------------------------------------------------- tools

unfit() {
    [[ -n $force ]] || die "$1 (--force installs anyway)"
    say "note: $1; continuing because of --force"
}

change() { # WHAT COMMAND...: every change goes through here
    changes=$((changes + 1))
    if [[ -n $check ]]; then
        say "would $1"
    else
        say "$1"
        "${@:2}"
    fi
}

conclude() { # STATE ACTION
    if ((changes == 0)); then
        say "nothing to change: $1"
    elif [[ -n $check ]]; then
        say "$changes changes would be made to $2 pvehook; nothing was changed"
        exit 1
    else
        say "done: $1"
    fi
}

version() { sed -n 's/^version = "\(.*\)"/\1/p' "$repo/pyproject.toml"; }

# /etc/pve is a cluster file system that can hang.
read_timely() { [[ ! -f $1 ]] || timeout 5 cat "$1" || die "$1 could not be read within 5 s"; }

write_file() { # TARGET: stdin, in one step, with the mode, owner and attributes of the file that was there
    local fresh=$1.pvehook-new
    mkdir -p "${1%/*}"
    rm -f "$fresh" # of a run that was killed
    : >"$fresh"
    [[ ! -e $1 ]] || cp --attributes-only --preserve=all "$1" "$fresh"
    cat >>"$fresh"
    put_in_place "$fresh" "$1"
}

copy_over() { # SOURCE TARGET: in one step, times and all
    cp -p "$1" "$2.pvehook-new"
    put_in_place "$2.pvehook-new" "$2"
}

put_in_place() { # FRESH TARGET: a node that loses its power has the old file or the new one, and no empty one
    sync "$1"
    mv -T "$1" "$2"
}

running_worker() { # the pid of a vzdump worker, if one runs; Proxmox writes its UPID into its command line
    local file command_line
    [[ -z $offline ]] || return 0
    for file in /proc/[0-9]*/cmdline; do
        command_line=''
        { IFS= read -r -d '' command_line <"$file" || true; } 2>/dev/null # a process may have ended meanwhile
        if [[ $command_line == "task UPID:"*":vzdump:"* ]]; then
            file=${file#/proc/}
            echo "${file%%/*}"
            return 0
        fi
    done
}

trap 'die "line $LINENO: $BASH_COMMAND"' ERR
main "$@"
