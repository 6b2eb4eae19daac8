/* SPDX-License-Identifier: MIT */
/*
 * log_queue.c: a bounded queue of lines, from any number of threads to one (Vyukov's bounded queue).
 *
 *     slot at position p:   free (sequence p) ──claim──> being filled ──publish──> published (p + 1) ──pop──> free (p + size)
 *
 * Invariants
 *   - A slot belongs to whoever has moved `tail` over it until it is published, and to whoever writes from then until it is popped.
 *   - Nobody waits: a queue that is full, or whose next slot is still being filled, is said to be so.
 *   - What is written stays in its slot until it was written: a fatal signal finds it there.
 */
#include "helgrind.h"
#include "log_internal.h"

guard_log_slot *guard_queue_claim(guard_log_queue *queue, uint64_t *at)
{
    uint64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    for (;;) {
        guard_log_slot *slot = &queue->slots[tail & queue->mask];
        uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
        if (sequence == tail) {
            if (atomic_compare_exchange_weak(&queue->tail, &tail, tail + 1)) {
                *at = tail;
                return slot;
            }
        } else if ((int64_t)(sequence - tail) < 0) {
            return NULL;
        } else {
            tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
        }
    }
}

void guard_queue_publish(guard_log_slot *slot, uint64_t at)
{
    HELGRIND_BEFORE(slot);
    atomic_store_explicit(&slot->sequence, at + 1, memory_order_release);
}

unsigned guard_queue_peek(const guard_log_queue *queue, guard_log_slot **slots, unsigned most)
{
    uint64_t head = atomic_load(&queue->head);
    unsigned count = 0;
    for (; count < most && count <= queue->mask; count++) {
        guard_log_slot *slot = &queue->slots[(head + count) & queue->mask];
        if (atomic_load_explicit(&slot->sequence, memory_order_acquire) != head + count + 1) {
            break;
        }
        HELGRIND_AFTER(slot);
        slots[count] = slot;
    }
    return count;
}

void guard_queue_pop(guard_log_queue *queue, unsigned count)
{
    uint64_t head = atomic_load(&queue->head);
    for (unsigned i = 0; i < count; i++, head++) {
        guard_log_slot *slot = &queue->slots[head & queue->mask];
        atomic_store_explicit(&slot->sequence, head + queue->mask + 1, memory_order_release);
    }
    atomic_store(&queue->head, head);
}

void guard_queue_clear(guard_log_queue *queue)
{
    for (uint64_t i = 0; i <= queue->mask; i++) {
        atomic_store(&queue->slots[i].sequence, i);
    }
    atomic_store(&queue->head, 0);
    atomic_store(&queue->tail, 0);
}
