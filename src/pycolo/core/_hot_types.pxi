# What the compiled side knows of a frame, a held frame and a connection; included by _hot.pyx.

cdef enum:
    KEY_BYTES = 40
    BLOCK_BYTES = 1080
    GROUP = 16  # frames that are looked at ahead
    TRIM_BYTES = 4096  # as in `twin_stream`
    FLAG_FIN = 0x01
    FLAG_SYN = 0x02
    FLAG_RST = 0x04
    FLAG_ACK = 0x10
    FLAG_URG = 0x20
    EVENTS = 0x27
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_SACK = 5
    OPTION_TIMESTAMP = 8

cdef enum Verdict:
    WAIT = 0
    RELEASE = 1
    DIVERGED = 2

cdef enum Done:
    HANDLED = 0
    SLOW = 1  # not for us: the Python twin has to see this frame
    PUMP = 2  # taken in, but what leaves now the Python twin has to say
    NO_MEMORY = 3

cdef struct Held:
    Held* next  # in its flow
    Held* before  # among all that are held, by age
    Held* behind
    Flow* flow
    int64_t no
    double arrived_ms
    uint32_t seq
    uint32_t ack
    uint32_t start
    uint32_t end
    uint32_t length
    uint16_t flags
    uint16_t at
    uint8_t frame[0]

cdef struct Block:
    Block* next
    uint8_t data[BLOCK_BYTES]

cdef struct Flow:
    Flow* chain
    uint64_t hashed
    int64_t epoch
    double touched_ms
    Held* first
    Held* last
    Block* first_block  # of the main run
    Block* last_block
    Block* cursor
    uint32_t cursor_place  # of the cursor's first byte, counted from the first block's
    uint32_t stream_start  # in the first block
    uint32_t stream_end  # in the last block
    uint32_t stream_length
    uint32_t base
    uint32_t delta
    uint32_t pvm_first
    uint32_t pvm_next
    uint32_t pvm_ack
    uint32_t released
    uint32_t acked
    uint32_t client_next
    uint32_t svm_ack
    uint32_t left_ack
    uint32_t trim_bytes
    uint8_t has_acked
    uint8_t has_client_next
    uint8_t client_spoke
    uint8_t followed  # by a tolerance: nothing may be forgotten before the twin has seen it
    uint8_t guessed
    uint8_t key_length
    uint8_t key[KEY_BYTES]

cdef struct Segment:
    const uint8_t* frame
    uint32_t length
    bint plain  # only then all else is meant
    uint64_t hashed
    Flow* flow
    uint32_t seq
    uint32_t ack
    uint32_t start
    uint32_t end
    uint16_t at
    uint16_t flags
    uint8_t key_length
    uint8_t key[KEY_BYTES]

cdef struct Buffer:
    uint8_t* data
    size_t length
    size_t room
