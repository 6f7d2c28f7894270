/*
 * Where the guest begins: a multiboot header for QEMU's -kernel, and the way from 32-bit protected mode into 64-bit mode.
 *
 * Everything that only an emulating KVM can do for an unmodified guest is done here, before 64-bit mode: cpuid, and the model
 * specific registers by which KVM is asked to write into guest memory (kvmclock and steal time).
 */
    .set MAGIC, 0x1badb002
    .set FLAGS, 1 << 16 /* the addresses below count, as this is no 32-bit ELF file */
    .set MSR_EFER, 0xc0000080
    .set MSR_KVM_SYSTEM_TIME_NEW, 0x4b564d01
    .set MSR_KVM_STEAL_TIME, 0x4b564d03
    .set KVM_FEATURE_CLOCKSOURCE2, 3
    .set KVM_FEATURE_STEAL_TIME, 5

    .section .start, "ax"
    .code32
    .balign 4
header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long header, image_start, image_end, 0, start

    .globl start
start:
    cli
    cld
    movl $stack_end, %esp
    call ask_kvm

    /* The first GiB and the local APIC, each address to itself, by pages of 2 MiB. QEMU has left what it tells kernels there. */
    movl $level4, %edi
    movl $4 * 4096 / 4, %ecx
    xorl %eax, %eax
    rep stosl
    movl $directory + 3, pointers
    movl $apic_directory + 3, pointers + 3 * 8
    movl $0xfee00093, apic_directory + 0x1f7 * 8
    movl $pointers + 3, level4
    movl $directory, %edi
    movl $0x83, %eax
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    cmpl $0x40000083, %eax
    jne 1b
    lgdt gdt_pointer
    movl $start64, %ebx

/* On to the address in %ebx, in 64-bit mode. */
enter_64_bits:
    movl %cr4, %eax
    orl $0x20, %eax /* PAE */
    movl %eax, %cr4
    movl $level4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $0x100, %eax /* LME */
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax /* PG, WP, PE */
    movl %eax, %cr0
    ljmp $0x10, $1f
    .code64
1:  movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    jmp *%rbx
    .code32

ask_kvm:
    movl $0x40000000, %eax
    cpuid
    cmpl $0x4b4d564b, %ebx /* "KVMK" */
    jne 2f
    movl $0x40000001, %eax
    cpuid
    movl %eax, kvm_features
    xorl %edx, %edx
    btl $KVM_FEATURE_CLOCKSOURCE2, kvm_features
    jnc 1f
    movl $MSR_KVM_SYSTEM_TIME_NEW, %ecx
    movl $kvmclock + 1, %eax
    wrmsr
1:  btl $KVM_FEATURE_STEAL_TIME, kvm_features
    jnc 2f
    movl $MSR_KVM_STEAL_TIME, %ecx
    movl $steal_time + 1, %eax
    wrmsr
2:  ret

    .code64
start64:
    movl $stack_end, %esp
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    xorl %eax, %eax
    rep stosb
    call guest
1:  jmp 1b

second64:
    movl $second_stack_end, %esp
    call second
1:  jmp 1b

/* Where the second processor begins, in real mode: the first one has copied this to the page from which it is started. */
    .code16
    .globl second_start, second_start_end
second_start:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_pointer_copy - second_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $2f
gdt_pointer_copy:
    .word gdt_end - gdt - 1
    .long gdt
second_start_end:
    .code32
2:  movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $second64, %ebx
    jmp enter_64_bits

    .balign 8
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00af9a000000ffff, 0x00cf92000000ffff
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    /* Memory as it was found: emulated instructions are slow. */
    .section .found, "aw", @nobits
    .balign 4096
level4: .skip 4096
pointers: .skip 4096
directory: .skip 4096
apic_directory: .skip 4096
    .globl kvmclock, steal_time, kvm_features
kvmclock: .skip 4096
steal_time: .skip 4096
kvm_features: .skip 16
    .skip 16384
stack_end:
    .skip 16384
second_stack_end:
