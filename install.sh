#!/usr/bin/env bash
# Installs pvehook on a Proxmox VE node and takes it off again; prepares the demo and the tests.
#
# Read `install` and `uninstall` first: each is the whole story, one verb a line. Whatever changes the system goes
# through `change`, which prints one line before it acts and only that line under --check.
#
# What uninstalling needs is kept under /var/lib/pvehook/install:
#     NAME.before    the file as it was (not there: there was no file)
#     NAME.after     the file as pvehook left it, so that a later edit by the admin can be told from our own
# for NAME vzdump.conf and pvehook.yaml. A file that still is NAME.after goes back to NAME.before byte for byte; in
# one that was edited since, only our lines are taken back.
set -Eeuo pipefail
shopt -s inherit_errexit
umask 022
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin # absent for a plain user, and after `su` without a dash

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly repo
readonly node_packages=(python3 python3-psutil python3-yaml python3-structlog)
readonly test_packages=(
    python3-venv shellcheck perl zstd lz4 e2fsprogs      # units and rehearsal
    debootstrap debian-archive-keyring systemd-container # Debian 12 and 13 under systemd-nspawn
    qemu-system-x86 swtpm                                # a real guest
    chromium fonts-dejavu-core                           # the report's page, looked at
)
readonly can_make_environments='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
readonly units=(pvehook.socket pvehook.service)

# Paths as the node spells them; `$root` in front of them is empty on the node itself.
readonly lib=/usr/local/lib/pvehook
readonly hook=$lib/hooks/vzdump-hook
readonly guest_hook=$lib/hooks/guest-hook
readonly snippet=pvehook-guest-hook # what the guest hook is called in a storage
readonly command=/usr/local/bin/pvehook
readonly unit_dir=/usr/local/lib/systemd/system
readonly socket_link=/etc/systemd/system/sockets.target.wants/pvehook.socket
readonly vzdump_conf=/etc/vzdump.conf
readonly node_yaml=/etc/pvehook.yaml
readonly cluster_yaml=/etc/pve/pvehook.yaml
readonly jobs_cfg=/etc/pve/jobs.cfg
readonly record=/var/lib/pvehook/install

root='' offline='' check='' force='' purge='' max_workers=''
changes=0
stage=''   # where the program is put together before it is compared and installed
renewed='' # which parts of a running daemon were replaced under it
python=''  # what makes the environment of demo and tests

usage() {
    cat <<'END'
install.sh: installs pvehook, which watches over the backups of a Proxmox VE node

  ./install.sh               install on this node (root; Proxmox VE 8 or 9); again: bring it up to date
  ./install.sh --check       say what would be done, change nothing; goes with --uninstall and --root too
  ./install.sh --uninstall   everything as it was, with the script and ionice that vzdump.conf had before
  ./install.sh --uninstall --purge   and remove /etc/pvehook.yaml, history and running state
  ./install.sh --max-workers N   install, and let each backup have N requests under way at once (Proxmox: 16),
                             by `performance: max-workers=N` in /etc/vzdump.conf; a value that is there stays
  ./install.sh --force       install although this is no Proxmox VE 8 or 9 on Debian 12 or 13
  ./install.sh --root DIR    the same in a directory tree (image builds, tests): no apt, systemctl or root
  ./install.sh --demo        any Linux, no root: play one night in a private environment (.venv) and show it
  ./install.sh --test [...]  set up everything the tests need and run them; arguments go to pytest
  ./install.sh --help        this page

What goes where: the program to /usr/local/lib/pvehook, the command to /usr/local/bin/pvehook, units to
/usr/local/lib/systemd/system; `script:` and `ionice: 8` into /etc/vzdump.conf, every other line kept. A
script that is named there already is chained: `chain:` in /etc/pvehook.yaml, run as vzdump ran it.

Exit code: 0 done, or nothing to change; with --check 1 if something would change; 2 on an error. What an
error left undone a second run finishes. --test passes on the exit code of pytest.
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
            --demo) action=demo ;;
            --test) shift && run_tests "$@" ;;
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
        root=$(cd "$root" && pwd)
        root=${root%/} # `--root /` is an image build from inside the image
    fi
    case $action in
        install) install_pvehook ;;
        uninstall) uninstall_pvehook ;;
        demo) run_demo ;;
    esac
}

# ---------------------------------------------------------------------------------------------- install

install_pvehook() {
    require_system
    require_free_way
    install_packages
    install_program
    install_command
    install_units
    end_old_daemon
    open_socket
    remember_configuration
    chain_their_script
    point_vzdump_at_the_hook
    limit_workers
    list_jobs_that_win
    check_configuration
    conclude "pvehook $(version) is in place" "install"
    offer_max_workers
    offer_guest_hook
}

require_system() {
    local name=unknown number=unknown pve
    [[ -n $offline || $EUID == 0 ]] || die "only root can install on this node (to try it without root: --demo)"
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

# What would stop the installation half way is found before anything is changed.
require_free_way() {
    local file link theirs chained at
    for file in hooks/{vzdump-hook,guest-hook,pvehook,pvehook.example.yaml,grafana-dashboard.json} README.md "${units[@]/#/hooks/systemd/}"; do
        [[ -f $repo/$file ]] || die "$repo/$file is missing: this is not a whole copy of pvehook"
    done
    for file in "$vzdump_conf" "$node_yaml"; do
        [[ ! -L $root$file ]] || die "$root$file is a symbolic link; pvehook changes plain files only"
    done
    link=$(readlink "$root$command" || true)
    [[ ! -e $root$command && -z $link || $link == "../lib/pvehook/bin/pvehook" ]] ||
        die "$root$command is in the way and not pvehook's; move it away first"
    theirs=$(their_script)
    [[ -n $theirs ]] || return 0
    for at in "$node_yaml" "$cluster_yaml"; do
        chained=$(chain_in "$at")
        [[ -z $chained || $chained == "$theirs" ]] ||
            die "$vzdump_conf runs $theirs, but $at already chains $chained, and pvehook chains one script." \
                "Call one from the other, or take one of the two out, then run this again"
    done
    [[ -f $root$theirs && -x $root$theirs ]] ||
        say "note: $theirs (script: in $vzdump_conf) is not an executable file; it is chained all the same"
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
    change "put the program, its bytecode, the README and the example configuration at $lib" copy_program
    renewed+=" program"
}

# Puts together at $stage what is to stand at $lib.
build_program() {
    local source target mode node_python=python3
    stage=$(mktemp -d)
    while read -r source target mode; do
        install -D -m "$mode" "$repo/$source" "$stage/$target"
    done < <(program_files)
    find "$stage" -type d -exec chmod 755 {} +
    [[ -n $offline ]] || node_python=/usr/bin/python3
    if [[ -n $check ]] && ! command -v "$node_python" >/dev/null; then return 0; fi # it would be installed
    # By hash and not by time, so that the bytecode stays valid in images whose files all get one time.
    "$node_python" -I -m compileall -q --invalidation-mode checked-hash -s "$stage" -p "$lib" "$stage/pvehook"
}

program_files() { # one line each: where in the repository, where under $lib, mode
    echo hooks/vzdump-hook hooks/vzdump-hook 755
    echo hooks/guest-hook hooks/guest-hook 755
    echo hooks/pvehook bin/pvehook 755
    echo hooks/pvehook.example.yaml pvehook.example.yaml 644
    echo hooks/grafana-dashboard.json grafana-dashboard.json 644
    echo README.md README.md 644
    (cd "$repo" && find pvehook -name __pycache__ -prune -o -type f -printf '%p %p 644\n')
}

listing() { # what stands under a directory, with types and modes
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

install_units() {
    local unit
    for unit in "${units[@]}"; do
        cmp -s "$repo/hooks/systemd/$unit" "$root$unit_dir/$unit" && continue
        change "install $unit_dir/$unit" \
            install -D -m 644 "$repo/hooks/systemd/$unit" "$root$unit_dir/$unit"
        renewed+=" $unit"
    done
    if [[ -z $offline && $renewed == *pvehook.* ]]; then
        change "let systemd read its units again" systemctl daemon-reload
    fi
}

# The daemon leaves by itself when it has nothing to watch; until then it runs the version it was started with.
end_old_daemon() {
    local worker
    [[ -z $offline && -n $renewed ]] && systemctl is-active --quiet pvehook.service || return 0
    worker=$(running_worker)
    if [[ -n $worker ]]; then
        say "note: a backup runs (pid $worker), so the daemon is left alone; the new version comes with its next start"
    else
        change "end the idle daemon; the next backup starts the new one" systemctl stop pvehook.service
    fi
}

open_socket() {
    if [[ -n $offline ]]; then
        [[ -L $root$socket_link ]] || change "enable pvehook.socket" link_socket
    elif ! systemctl is-enabled --quiet pvehook.socket 2>/dev/null || ! systemctl is-active --quiet pvehook.socket; then
        change "enable and start pvehook.socket" systemctl enable --quiet --now pvehook.socket
    elif [[ $renewed == *pvehook.socket* ]] && ! systemctl is-active --quiet pvehook.service; then
        change "open the changed pvehook.socket again" systemctl restart pvehook.socket
    fi
}

link_socket() {
    mkdir -p "$root${socket_link%/*}"
    ln -s "$unit_dir/pvehook.socket" "$root$socket_link"
}

# A configuration that was there before the first installation survives even --purge.
remember_configuration() {
    [[ -z $check && ! -d $root$record ]] || return 0
    mkdir -p "$root$record"
    [[ ! -e $root$node_yaml ]] || cp -p "$root$node_yaml" "$root$record/${node_yaml##*/}.before"
}

# `script:` can name one file only. Theirs is handed on to pvehook, which runs it as vzdump did.
chain_their_script() {
    local theirs
    theirs=$(their_script)
    [[ -z $theirs || $(chain_in "$node_yaml") == "$theirs" || $(chain_in "$cluster_yaml") == "$theirs" ]] ||
        change "chain $theirs (so far script: in $vzdump_conf) in $node_yaml" write_chain "$theirs"
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

# How backups are made is the admin's to decide: only on request, and never over a value that is there.
limit_workers() {
    local set_already
    [[ -n $max_workers ]] || return 0
    set_already=$(conf_value performance "$root$vzdump_conf")
    if [[ -z $set_already ]]; then
        change "set performance: max-workers=$max_workers in $vzdump_conf: of a VM's backup at most $max_workers requests\
 then stand in front of one of the VM's own, instead of Proxmox's 16" \
            put_lines "$vzdump_conf" "script: $hook" "ionice: 8" "performance: max-workers=$max_workers"
    elif [[ ,$set_already, != *,max-workers=$max_workers,* ]]; then
        say "note: $vzdump_conf has performance: $set_already already, and that stays; to change it, put" \
            "max-workers=$max_workers into that line"
    fi
}

offer_max_workers() {
    [[ -z $(conf_value performance "$root$vzdump_conf") ]] || return 0
    say "optional: VMs stall least while one request of their backup is under way at a time; Proxmox has 16, unless you" \
        "say otherwise: ./install.sh --max-workers 1"
}

# Jobs are the admin's own, and a job's setting is often there for a reason: they are shown, not changed.
list_jobs_that_win() {
    local id key value
    while IFS=$'\t' read -r id key value; do
        say "note: job $id has $key $value of its own, which wins over $vzdump_conf; if it need not:" \
            "pvesh set /cluster/backup/$id --delete $key"
    done < <(read_timely "$root$jobs_cfg" | jobs_with_own_settings)
}

jobs_with_own_settings() { # stdin: jobs.cfg; one line for each job and key: ID, key, value
    awk -v hook="$hook" '
        /^[^ \t#]/ { id = ""; if ($1 == "vzdump:") id = $2 }
        id != "" && ($1 == "script" && $2 != hook || $1 == "ionice" && $2 != 8) {
            key = $1; $1 = ""; sub(/^[ \t]+/, ""); print id "\t" key "\t" $0
        }'
}

# A VM takes a hookscript from a storage only, and has room for one: that is the admin's to decide.
offer_guest_hook() {
    say "optional: a VM that is shut down while its backup has it frozen is thawed first, if you let it run" \
        "$guest_hook, from a storage that holds snippets:"
    say "    cp $guest_hook /var/lib/vz/snippets/$snippet && qm set VMID --hookscript local:snippets/$snippet"
}

# An invalid configuration stops no backup, so it stops no installation either; but this is the moment to hear of it.
check_configuration() {
    [[ -z $offline && -z $check ]] || return 0
    "$command" config check >/dev/null ||
        say "note: until that is mended pvehook runs with its last good configuration, or with the built-in one"
}

# -------------------------------------------------------------------------------------------- uninstall

uninstall_pvehook() {
    local worker
    [[ -n $offline || $EUID == 0 ]] || die "only root can uninstall on this node"
    worker=$(running_worker)
    # Its last guests still call the hook: without configuration and state it would go by the built-in window.
    [[ -z $purge || -z $worker ]] ||
        die "a backup runs (pid $worker), and its hook still needs configuration and state;" \
            "run --uninstall --purge again when it is over (--uninstall alone can be run now)"
    restore "$vzdump_conf" script ionice performance
    drop_unrecorded_script
    [[ -n $purge ]] || restore "$node_yaml" chain
    remove_units
    [[ ! -L $root$command ]] || change "remove the command $command" rm "$root$command"
    remove_program "$worker"
    [[ -z $purge ]] || purge_configuration
    [[ ! -d $root$record ]] || change "forget what was changed at installation ($record)" rm -r "$root$record"
    [[ -z $purge ]] || purge_history
    [[ -n $check ]] || rmdir --ignore-fail-on-non-empty "$root${record%/*}" 2>/dev/null || true
    [[ -n $purge || -n $check || ! -e $root$node_yaml ]] || say "kept: $node_yaml, with what you wrote; remove it by hand if you want"
    [[ -z $purge || ! -e $root$cluster_yaml ]] || say "kept: $cluster_yaml, which is the whole cluster's"
    list_vms_with_guest_hook
    conclude "pvehook is not installed" "uninstall"
}

# A VM whose hookscript is gone does not start, so a copy in a storage is never removed here. Alone it does nothing.
list_vms_with_guest_hook() {
    local config
    while IFS= read -r config; do
        config=${config##*/}
        say "note: VM ${config%.conf} still runs $snippet, which does nothing now; take it off, then remove that" \
            "snippet: qm set ${config%.conf} --delete hookscript"
    done < <(timeout 5 grep -lsE "^hookscript:.*$snippet" -r "$root/etc/pve/qemu-server" --include='*.conf' | sort)
}

# Takes our lines for the given keys out of a file that was changed by put_lines.
restore() { # FILE KEY...
    local file=$1 before after
    before=$root$record/${file##*/}.before after=$root$record/${file##*/}.after
    [[ -f $after && -f $root$file ]] || return 0
    if cmp -s "$root$file" "$after"; then
        if [[ -e $before ]]; then
            change "put back $file as it was" copy_over "$before" "$root$file"
        else
            change "remove $file, which was not there before" rm "$root$file"
        fi
    elif ! without_our_lines "$@" | cmp -s - "$root$file"; then
        change "take pvehook's lines out of $file, which was edited since; the edits stay" take_lines "$@"
    fi
}

# Set by hand, or the record is lost: a script: that names a removed file would fail every backup job.
drop_unrecorded_script() {
    [[ ! -f $root$record/${vzdump_conf##*/}.after ]] || return 0
    [[ $(conf_value script "$root$vzdump_conf") != "$hook" ]] ||
        change "take script: $hook out of $vzdump_conf; no record says what was there before" \
            take_lines "$vzdump_conf" script
}

take_lines() { # FILE KEY...
    without_our_lines "$@" | write_file "$root$1"
    [[ -s $root$1 ]] || rm "$root$1"
}

remove_units() {
    local unit present=''
    for unit in "${units[@]}"; do [[ ! -e $root$unit_dir/$unit ]] || present+=" $unit_dir/$unit"; done
    if [[ -n $offline ]]; then
        [[ ! -L $root$socket_link ]] || change "disable pvehook.socket" unlink_socket
    elif [[ -n $present ]]; then
        change "stop pvehook and disable pvehook.socket" stop_units
    fi
    [[ -n $present ]] || return 0
    change "remove$present" delete_units
    [[ -n $offline ]] || change "let systemd read its units again" systemctl daemon-reload
}

unlink_socket() {
    rm "$root$socket_link"
    rmdir --ignore-fail-on-non-empty "$root${socket_link%/*}"
}

stop_units() {
    systemctl disable --quiet --now pvehook.socket
    systemctl stop pvehook.service
}

delete_units() {
    rm -f "${units[@]/#/$root$unit_dir/}"
    rmdir --ignore-fail-on-non-empty "$root$unit_dir" "$root${unit_dir%/*}" 2>/dev/null || true
}

# A running vzdump has read its `script:` already and would fail each further guest if the file were gone. Without
# the daemon the hook still answers every phase.
remove_program() { # PID of a running vzdump worker, or nothing
    [[ -e $root$lib ]] || return 0
    if [[ -n $1 ]]; then
        say "note: a backup runs (pid $1) and goes on calling $hook, so $lib stays for now;" \
            "run this again when that backup is over"
        return 0
    fi
    change "remove the program $lib" rm -r "$root$lib"
    [[ -n $offline || ! -e /run/pvehook ]] || change "remove the running state /run/pvehook" rm -r /run/pvehook
}

purge_configuration() {
    local before=$root$record/${node_yaml##*/}.before
    [[ -e $root$node_yaml ]] || return 0
    if [[ ! -d $root$record ]]; then
        say "kept: $node_yaml; no record says that it came with pvehook, so remove it by hand if you want"
    elif [[ ! -e $before ]]; then
        change "remove the configuration $node_yaml" rm "$root$node_yaml"
    elif ! cmp -s "$before" "$root$node_yaml"; then
        change "put back $node_yaml as it was before pvehook was installed" copy_over "$before" "$root$node_yaml"
    fi
}

purge_history() {
    local directory
    for directory in "${record%/*}" /run/pvehook; do
        [[ ! -e $root$directory ]] || change "remove $directory with all that is in it" rm -r "$root$directory"
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
        without_our_lines "$file" "${@%%:*}" | write_file "$before.new" && mv "$before.new" "$before"
        [[ -s $before ]] || rm "$before"
    elif [[ -e $root$file ]]; then
        copy_over "$root$file" "$before"
    fi
    wanted=$(mktemp -p "$root$record")
    [[ ! -e $root$file ]] || cat "$root$file" >"$wanted"
    for line in "$@"; do
        replace_line "${line%%:*}" "" "$line" <"$wanted" >"$wanted.next"
        mv "$wanted.next" "$wanted"
    done
    mv "$wanted" "$after"
    write_file "$root$file" <"$after"
}

without_our_lines() { # FILE KEY...: the file as it would be without pvehook
    local file=$1 key before after text
    before=$root$record/${file##*/}.before after=$root$record/${file##*/}.after
    text=$(cat "$root$file" && echo .) # the dot keeps the line ends that $(...) would drop
    for key in "${@:2}"; do
        # What we did not set is the admin's, who may have set it since.
        [[ ! -f $after || -n $(conf_value "$key" "$after") ]] || continue
        text=$(printf '%s' "${text%.}" |
            replace_line "$key" "$(conf_value "$key" "$after")" "$(conf_line "$key" "$before")" && echo .)
    done
    printf '%s' "${text%.}"
}

# The last line of stdin with this key becomes NEW (nothing: it goes away), if its value is OLD or OLD is empty.
# Without such a line NEW is added at the end when OLD is empty.
replace_line() { # KEY OLD NEW
    old=$2 new=$3 awk -v key="$1" '
        { line[NR] = $0 }
        $0 ~ "^[ \t]*" key ":" { last = NR; value = $0; sub(/^[^:]*:[ \t]*/, "", value); sub(/[ \t\r]+$/, "", value) }
        END {
            count = NR; old = ENVIRON["old"]; new = ENVIRON["new"]
            if (last && (old == "" || value == old)) { line[last] = new; drop = (new == "" ? last : 0) }
            else if (!last && old == "") line[++count] = new
            for (i = 1; i <= count; i++) if (i != drop) print line[i]
        }'
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
    [[ $script == "$hook" ]] || printf '%s' "$script"
}

chain_in() { # FILE: the script that a configuration chains already, if any
    conf_value chain "$root$1" |
        sed -E "s/[[:space:]]+#.*//; s/^(null|Null|NULL|~)\$//; s/^([\"'])(.*)\\1\$/\\2/; s/''/'/g"
}

# ---------------------------------------------------------------------------------------- demo and tests

run_demo() {
    make_environment
    exec "$repo/.venv/bin/pvehook" rehearse --simulated
}

run_tests() {
    install_test_packages
    make_environment
    cd "$repo"
    exec .venv/bin/python -m pytest "$@"
}

install_test_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null; then
        say "note: this is no Debian; tests whose tools are missing skip themselves and say which"
        return 0
    fi
    read -ra missing <<<"$(missing_packages "${test_packages[@]}")"
    ((${#missing[@]})) || return 0
    if dpkg-query -W pve-manager >/dev/null 2>&1; then
        say "note: nothing is installed for tests on a Proxmox VE node (its QEMU is its own);" \
            "tests that need one of these skip themselves: ${missing[*]}"
    elif [[ $EUID != 0 ]]; then
        say "note: without root nothing can be installed; tests that need one of these skip themselves: ${missing[*]}"
    else
        say "install Debian packages for the tests: ${missing[*]}"
        apt_install "${missing[@]}" || say "note: not all could be installed; tests that need them skip themselves"
    fi
}

# One private environment for demo and tests, made again only when the project, its place or the Python has changed.
make_environment() {
    local key venv=$repo/.venv
    find_python
    key=$({ echo "$repo" && "$python" -c 'import sys; print(sys.version, sys.executable)' &&
        cat "$repo/pyproject.toml"; } | sha256sum)
    if [[ -x $venv/bin/pvehook && $(cat "$venv/made-for" 2>/dev/null) == "$key" ]]; then return 0; fi
    say "make a private environment at $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${repo}[test]"
    printf '%s\n' "$key" >"$venv/made-for"
}

find_python() { # sets $python to a Python 3.11 or newer that can make environments
    for python in python3 python3.13 python3.12 python3.11; do
        ! "$python" -c "$can_make_environments" 2>/dev/null || return 0
    done
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        die "no Python 3.11 or newer with venv and ensurepip here; on Debian, as root: apt-get install python3-venv"
    fi
    say "install Debian package python3-venv"
    apt_install python3-venv
    python=/usr/bin/python3
    "$python" -c "$can_make_environments" || die "$("$python" -V) of this Debian is too old: 3.11 or newer was expected"
}

# ------------------------------------------------------------------------------------------------- tools

say() { printf 'pvehook: %s\n' "$*"; }

die() {
    trap - ERR
    say "error: $*" >&2
    exit 2
}

unfit() {
    [[ -n $force ]] || die "$1 (--force installs anyway)"
    say "note: $1; going on because of --force"
}

change() { # WHAT COMMAND...: the one door to every change
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

missing_packages() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s ' "$package"
    done
}

# A node without a subscription cannot refresh every list, and need not. Nothing is ever removed for us.
apt_install() {
    apt-get update -qq >/dev/null || say "note: not every package list could be refreshed"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends --no-remove "$@" >/dev/null
}

# /etc/pve is a cluster file system that can hang.
read_timely() { [[ ! -f $1 ]] || timeout 5 cat "$1" || die "$1 could not be read within 5 s"; }

write_file() { # TARGET: stdin, in one step, with the mode, owner and attributes of the file that was there
    local fresh
    mkdir -p "${1%/*}"
    fresh=$(mktemp "$1.XXXXXX")
    chmod 644 "$fresh"
    [[ ! -e $1 ]] || cp --attributes-only --preserve=all "$1" "$fresh"
    cat >"$fresh"
    mv -T "$fresh" "$1"
}

copy_over() { # SOURCE TARGET: in one step, times and all
    cp -p "$1" "$2.new"
    mv -T "$2.new" "$2"
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
