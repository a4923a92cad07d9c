#!/bin/sh
# customize.sh ROOT GUEST: what makes the fresh Debian in ROOT the guest of the test bed.
set -eu
root=$1 guest=$2

# Only what finds and mounts /dev/vda: the kernel makes its node, without udev.
sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=zstd/' "$root/etc/initramfs-tools/initramfs.conf"
for part in hooks scripts/init-top scripts/init-bottom; do
    rm "$root/usr/share/initramfs-tools/$part/udev"
done
printf '%s\n' virtio_pci virtio_blk ext4 crc32c_generic >> "$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all > /dev/null

# Packages that are installed later come with their manual pages.
rm -f "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap

install -D -m 755 "$guest/agent.py" "$root/usr/local/lib/testbed/agent.py"
install -m 644 "$guest/agent.service" "$root/etc/systemd/system/testbed-agent.service"
chroot "$root" useradd -m -s /bin/bash alice
chroot "$root" useradd -m -s /bin/bash bob
printf '%s\n' root:root alice:alice bob:bob | chroot "$root" chpasswd
systemctl -q --root="$root" enable testbed-agent.service
# Nothing here is for them to find (disks by their kind, LUKS, consoles), and each reload starts all of them.
mkdir -p "$root/etc/systemd/system-generators"
for generator in "$root"/lib/systemd/system-generators/*; do
    ln -s /dev/null "$root/etc/systemd/system-generators/${generator##*/}"
done
# What a boot can do without.
systemctl -q --root="$root" mask modprobe@drm.service modprobe@fuse.service modprobe@dm_mod.service \
    modprobe@loop.service modprobe@efi_pstore.service dev-mqueue.mount sys-kernel-tracing.mount \
    sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount uuidd.socket uuidd.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-tmpfiles-clean.timer
# What would run at some moment of its own, beside a test.
systemctl -q --root="$root" mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer nvmf-autoconnect.service nvmefc-boot-connections.service \
    getty@tty1.service systemd-pstore.service systemd-binfmt.service

echo testbed > "$root/etc/hostname"
echo '127.0.0.1 localhost testbed' > "$root/etc/hosts"
echo '/dev/vda / ext4 rw,noatime 0 0' > "$root/etc/fstab"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' > "$root/etc/systemd/journald.conf.d/testbed.conf"
: > "$root/etc/machine-id"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
