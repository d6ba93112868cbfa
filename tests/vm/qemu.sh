# The machine of the guest, for guest.sh and in-guest.sh, which source this: a saved guest
# goes on only in a machine equal to the one that it was saved in.

# Size of the second disk, which holds a tar archive.
SHARE_SIZE=1G

# exec_qemu LIMIT FOLDER DISK SHARE PORT CONSOLE [OPTION]…: for LIMIT seconds at most.
# FOLDER holds kernel and initrd; PORT is a character device of qemu that speaks with
# agent.sh, CONSOLE a file for the guest's log. It takes the place of the shell, so it is
# for a subshell.
#
# Software emulation on purpose: it does the same everywhere. And the guest's clock goes by
# the instructions that it executes (2^1 ns each): to the guest this is a slow machine, but
# evenly so, whatever else the host does meanwhile. Only while it waits is its time ours.
exec_qemu() {
    limit=$1 folder=$2 disk=$3 share=$4 port=$5 console=$6
    shift 6
    exec timeout "$limit" qemu-system-x86_64 -accel tcg,thread=single,tb-size=512 -icount shift=1 -M pc \
        -cpu max,la57=off,pku=off,svm=off -smp 2 -m 2G \
        -nodefaults -no-user-config -display none -no-reboot -nic none \
        -kernel "$folder/kernel" -initrd "$folder/initrd" \
        -append "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.show_status=no" \
        -drive "file=$disk,if=virtio,format=raw,cache=unsafe" \
        -drive "file=$share,if=virtio,format=raw,cache=unsafe" \
        -device virtio-rng-pci -serial "file:$console" \
        -device virtio-serial-pci -chardev "$port,id=port" \
        -device virtserialport,chardev=port,name=longshore "$@"
}
