/*
 * A guest that needs nothing: no interrupt, no kernel, no libc. It polls a virtio-net card by its legacy registers, and answers ARP,
 * ping, and datagrams on three UDP ports.
 *
 * Port 7: the datagram, then how many of them have been answered so far and a sum over all their bytes; equal in two copies that got the
 *         same datagrams in the same order. Each is also written to a log in memory.
 * Port 8: the datagram, then the TSC and kvmclock (in ns, 0 without KVM); never equal in two copies.
 * Port 9: the datagram, then how often the second processor has gone round (0 without one), and 0.
 * Between frames it writes to one page after the other, so that there are always dirty pages, other ones in each copy; a second
 * processor does nothing else.
 */
#include <stddef.h>
#include <stdint.h>

#ifndef ADDRESS
#error "ADDRESS is to be the guest's IPv4 address, as a big-endian number"
#endif

#define SERIAL 0x3f8
#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define VIRTIO_NET 0x10001af4u

enum { GUEST_FEATURES = 4, QUEUE_PAGE = 8, QUEUE_SIZE = 12, QUEUE_SELECT = 14, QUEUE_NOTIFY = 16, STATUS = 18, CONFIG = 20 };
enum { RECEIVE = 0, SEND = 1, QUEUE_MAX = 1024, WRITABLE = 2, NO_INTERRUPT = 1, HEADER = 10, BUFFER = 2048, BUFFERS = 256 };
enum { WANDERED_PAGES = 2048, POLLS_PER_PAGE = 4096, LOG_BYTES = 4 << 20 };
enum { SECOND_PAGE = 8, APIC_COMMAND = 0xfee00300, INIT_OTHERS = 0xc4500, START_OTHERS = 0xc4600, TICKS_BETWEEN = 50000000 };

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct available {
    uint16_t flags, index, ring[];
};

struct used {
    uint16_t flags, index;
    struct {
        uint32_t id, length;
    } ring[];
};

/* The card says how long its queues are (256, or 1024 in QEMU 10.0); their parts follow each other in `memory`. */
struct queue {
    uint8_t memory[32768];
    struct descriptor *table;
    struct available *available;
    struct used *used;
    uint16_t length;
} __attribute__((aligned(4096)));

struct clock_page {
    volatile uint32_t version;
    uint32_t unused;
    volatile uint64_t tsc, ns;
    volatile uint32_t multiplier;
    volatile int8_t shift;
};

extern struct clock_page kvmclock;
extern uint32_t kvm_features;
extern const uint8_t second_start[], second_start_end[];

static struct queue queues[2];
static uint8_t received[BUFFERS][BUFFER], reply[BUFFER];
static uint8_t wandered[WANDERED_PAGES][4096] __attribute__((aligned(4096), section(".found,\"aw\",@nobits#")));
static uint8_t wandered_by_second[WANDERED_PAGES][4096] __attribute__((aligned(4096), section(".found,\"aw\",@nobits#")));
static uint8_t request_log[LOG_BYTES] __attribute__((aligned(4096), section(".found,\"aw\",@nobits#")));
static uint64_t answered, sum, polls;
static volatile uint64_t rounds;
static uint16_t card, seen;
static uint8_t mac[6];

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void barrier(void) { __asm__ volatile("mfence" : : : "memory"); }

static uint64_t tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

void *memcpy(void *to, const void *from, size_t length)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    while (length--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t length)
{
    uint8_t *t = to;
    while (length--)
        *t++ = value;
    return to;
}

static void say(const char *text)
{
    while (*text)
        out8(SERIAL, *text++);
}

static uint64_t kvmclock_ns(void)
{
    uint32_t version;
    uint64_t ns;
    if (!(kvm_features & 1 << 3))
        return 0;
    do {
        version = kvmclock.version;
        barrier();
        uint64_t passed = tsc() - kvmclock.tsc;
        passed = kvmclock.shift < 0 ? passed >> -kvmclock.shift : passed << kvmclock.shift;
        ns = kvmclock.ns + (uint64_t)((unsigned __int128)passed * kvmclock.multiplier >> 32);
        barrier();
    } while (version & 1 || version != kvmclock.version);
    return ns;
}

static uint32_t pci_read(uint32_t slot, uint32_t offset)
{
    out32(PCI_ADDRESS, 0x80000000u | slot << 11 | offset);
    return in32(PCI_DATA);
}

static int find_card(void)
{
    for (uint32_t slot = 0; slot < 32; slot++) {
        if (pci_read(slot, 0) != VIRTIO_NET)
            continue;
        card = pci_read(slot, 0x10) & 0xfffc;
        uint32_t command = pci_read(slot, 4);
        out32(PCI_DATA, (command & 0xffff) | 5); /* I/O ports and bus master */
        return 1;
    }
    return 0;
}

static int set_up_queue(int which)
{
    struct queue *queue = &queues[which];
    out16(card + QUEUE_SELECT, which);
    queue->length = in16(card + QUEUE_SIZE);
    if (queue->length < BUFFERS || queue->length > QUEUE_MAX)
        return 0;
    uint32_t used_at = (16 * queue->length + 6 + 2 * queue->length + 4095) & ~4095u;
    queue->table = (struct descriptor *)queue->memory;
    queue->available = (struct available *)(queue->memory + 16 * queue->length);
    queue->used = (struct used *)(queue->memory + used_at);
    queue->available->flags = NO_INTERRUPT;
    out32(card + QUEUE_PAGE, (uint32_t)(uintptr_t)queue->memory >> 12);
    return 1;
}

/* Give a buffer to the card. */
static void give(struct queue *queue, uint16_t number, void *buffer, uint32_t length, uint16_t flags)
{
    queue->table[number] = (struct descriptor){(uintptr_t)buffer, length, flags, 0};
    queue->available->ring[queue->available->index % queue->length] = number;
    barrier();
    *(volatile uint16_t *)&queue->available->index += 1;
    barrier();
}

static int set_up_card(void)
{
    out8(card + STATUS, 0);
    out8(card + STATUS, 3);
    out32(card + GUEST_FEATURES, 0);
    if (!set_up_queue(RECEIVE) || !set_up_queue(SEND))
        return 0;
    for (int i = 0; i < 6; i++)
        mac[i] = in8(card + CONFIG + i);
    out8(card + STATUS, 7);
    for (uint16_t number = 0; number < BUFFERS; number++)
        give(&queues[RECEIVE], number, received[number], BUFFER, WRITABLE);
    out16(card + QUEUE_NOTIFY, RECEIVE);
    return 1;
}

static void send_frame(uint32_t length)
{
    struct queue *queue = &queues[SEND];
    memset(reply, 0, HEADER);
    give(queue, 0, reply, HEADER + length, 0);
    out16(card + QUEUE_NOTIFY, SEND);
    while (*(volatile uint16_t *)&queue->used->index != queue->available->index)
        __asm__ volatile("pause");
}

static uint16_t get16(const uint8_t *from) { return (uint16_t)(from[0] << 8 | from[1]); }

static void put(uint8_t *to, uint64_t value, int bytes)
{
    while (bytes--) {
        to[bytes] = value;
        value >>= 8;
    }
}

static uint16_t checksum(const uint8_t *from, uint32_t length)
{
    uint32_t total = 0;
    for (uint32_t i = 0; i + 1 < length; i += 2)
        total += get16(from + i);
    if (length & 1)
        total += from[length - 1] << 8;
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    return ~total;
}

static void answer_arp(const uint8_t *frame, uint8_t *out)
{
    static const uint8_t wanted[8] = {0, 1, 8, 0, 6, 4, 0, 1};
    for (int i = 0; i < 8; i++)
        if (frame[14 + i] != wanted[i])
            return;
    if (((uint32_t)get16(frame + 38) << 16 | get16(frame + 40)) != ADDRESS)
        return;
    memset(out, 0, 60);
    memcpy(out, frame + 6, 6);
    memcpy(out + 6, mac, 6);
    memcpy(out + 12, frame + 12, 8);
    put(out + 20, 2, 2);
    memcpy(out + 22, mac, 6);
    put(out + 28, ADDRESS, 4);
    memcpy(out + 32, frame + 22, 10);
    send_frame(60);
}

/* Two numbers behind a datagram, by its port; how many bytes they are, 0 when nobody listens there. */
static uint32_t add_numbers(uint16_t port, const uint8_t *data, uint32_t length, uint8_t *behind)
{
    if (port == 8) {
        put(behind, tsc(), 8);
        put(behind + 8, kvmclock_ns(), 8);
        return 16;
    }
    if (port == 9) {
        put(behind, rounds, 8);
        put(behind + 8, 0, 8);
        return 16;
    }
    if (port != 7)
        return 0;
    uint64_t at = (answered * BUFFER) % LOG_BYTES;
    memcpy(request_log + at, data, length);
    for (uint32_t i = 0; i < length; i++)
        sum = sum * 31 + data[i];
    answered++;
    put(behind, answered, 8);
    put(behind + 8, sum, 8);
    return 16;
}

static void answer_ip(const uint8_t *frame, uint32_t size, uint8_t *out)
{
    const uint8_t *ip = frame + 14;
    uint32_t total = get16(ip + 2);
    if (ip[0] != 0x45 || total < 28 || total + 14 > size || total > 1472 || (get16(ip + 6) & 0x3fff))
        return;
    if (((uint32_t)get16(ip + 16) << 16 | get16(ip + 18)) != ADDRESS)
        return;
    uint8_t *head = out + 14, *body = head + 20;
    memcpy(out, frame + 6, 6);
    memcpy(out + 6, mac, 6);
    memcpy(out + 12, frame + 12, 2 + total);
    memcpy(head + 12, ip + 16, 4);
    memcpy(head + 16, ip + 12, 4);
    put(head + 4, 0x4000, 4); /* no id, may not be fragmented */
    head[8] = 64;
    if (ip[9] == 1 && body[0] == 8) {
        body[0] = 0;
        put(body + 2, 0, 2);
        put(body + 2, checksum(body, total - 20), 2);
    } else if (ip[9] == 17) {
        uint32_t added = add_numbers(get16(body + 2), ip + 28, total - 28, head + total);
        if (!added)
            return;
        total += added;
        memcpy(body, ip + 22, 2);
        memcpy(body + 2, ip + 20, 2);
        put(body + 4, total - 20, 2);
        put(body + 6, 0, 2); /* none, as IPv4 allows */
    } else {
        return;
    }
    put(head + 2, total, 2);
    put(head + 10, 0, 2);
    put(head + 10, checksum(head, 20), 2);
    send_frame(14 + total < 60 ? 60 : 14 + total);
}

static void take_frame(const uint8_t *frame, uint32_t length)
{
    uint8_t *out = reply + HEADER;
    memset(out, 0, 60);
    if (length >= 42 && get16(frame + 12) == 0x0806)
        answer_arp(frame, out);
    else if (length >= 42 && get16(frame + 12) == 0x0800)
        answer_ip(frame, length, out);
}

static void wander(void)
{
    if (++polls % POLLS_PER_PAGE == 0)
        *(volatile uint64_t *)wandered[polls / POLLS_PER_PAGE % WANDERED_PAGES] += 1;
    __asm__ volatile("pause");
}

static void command_others(uint32_t command)
{
    *(volatile uint32_t *)(uintptr_t)APIC_COMMAND = command;
    for (uint64_t begun = tsc(); tsc() - begun < TICKS_BETWEEN;)
        __asm__ volatile("pause");
}

static void start_second(void)
{
    memcpy((void *)(uintptr_t)(SECOND_PAGE << 12), second_start, second_start_end - second_start);
    command_others(INIT_OTHERS);
    command_others(START_OTHERS | SECOND_PAGE);
}

/* What the second processor does. */
void second(void)
{
    for (;;) {
        for (int poll = 0; poll < POLLS_PER_PAGE; poll++)
            __asm__ volatile("pause");
        rounds++;
        *(volatile uint64_t *)wandered_by_second[rounds % WANDERED_PAGES] += 1;
    }
}

void guest(void)
{
    say("FIRMWARE-GUEST-STARTED\r\n");
    if (!find_card()) {
        say("FIRMWARE-GUEST-FAILED: no network card\r\n");
        return;
    }
    if (!set_up_card()) {
        say("FIRMWARE-GUEST-FAILED: no queues of up to 1024 entries\r\n");
        return;
    }
    start_second();
    say(kvm_features & 1 << 3 ? "FIRMWARE-GUEST-READY with kvmclock\r\n" : "FIRMWARE-GUEST-READY\r\n");
    for (;;) {
        struct used *used = queues[RECEIVE].used;
        if (seen == *(volatile uint16_t *)&used->index) {
            wander();
            continue;
        }
        barrier();
        uint16_t number = used->ring[seen % queues[RECEIVE].length].id;
        uint32_t length = used->ring[seen % queues[RECEIVE].length].length;
        seen++;
        if (length > HEADER && length <= BUFFER)
            take_frame(received[number] + HEADER, length - HEADER);
        give(&queues[RECEIVE], number, received[number], BUFFER, WRITABLE);
    }
}
