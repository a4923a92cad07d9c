#!/bin/sh
# NVMe namespaces without PCI: a target over TCP on the loopback device, over null_blk devices.
#   nvme-fabric up NUMBER     connects a controller with so many namespaces
#   nvme-fabric ns N 0|1      takes namespace N away, or gives it back
#   nvme-fabric path          connects another controller: a second path to each namespace
#   nvme-fabric down
# Each namespace is a head (nvme1nN), which has the scheduler `none` only, over a hidden path (nvme1c1nN), which has the
# real ones.
set -e
config=/sys/kernel/config/nvmet
subsystem=$config/subsystems/testbed
disks=/sys/kernel/config/nullb
listen() {
    port=$config/ports/$1
    mkdir "$port"
    echo tcp > "$port/addr_trtype"
    echo ipv4 > "$port/addr_adrfam"
    echo 127.0.0.1 > "$port/addr_traddr"
    echo "442$1" > "$port/addr_trsvcid"
    ln -s $subsystem "$port/subsystems/testbed"
}
connect() {
    nvme connect -t tcp -a 127.0.0.1 -s "442$1" -n testbed
}
case $1 in
up)
    [ -d $disks ] || modprobe null_blk nr_devices=0
    modprobe -a nvmet nvmet-tcp nvme-tcp
    mkdir $subsystem
    echo 1 > $subsystem/attr_allow_any_host
    listen 1
    for n in $(seq "$2"); do
        mkdir "$disks/back$n" "$subsystem/namespaces/$n"
        echo 16 > "$disks/back$n/size"
        echo 1 > "$disks/back$n/power"
        printf '/dev/back%s' "$n" > "$subsystem/namespaces/$n/device_path"
        echo 1 > "$subsystem/namespaces/$n/enable"
    done
    connect 1
    ;;
path)
    listen 2
    connect 2
    ;;
ns) echo "$3" > "$subsystem/namespaces/$2/enable" ;;
down)
    nvme disconnect -n testbed
    rm $config/ports/*/subsystems/testbed
    rmdir $subsystem/namespaces/* $subsystem $config/ports/* $disks/back*
    ;;
*) exit 2 ;;
esac
