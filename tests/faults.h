/* SPDX-License-Identifier: MIT */
/*
 * faults.h: functions that really fault, whatever a compiler knows: the addresses and divisors are read from volatile variables. All have
 * the form of a guard_fn; the argument is not used but where it says so.
 */
#ifndef TESTS_FAULTS_H
#define TESTS_FAULTS_H

#include "child.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FAULT_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FAULT_SANITIZED 1
#endif
#endif
#ifndef FAULT_SANITIZED
#define FAULT_SANITIZED 0
#endif

/* It delivers signals that were sent later, and reports what a handler does. */
#if defined(__SANITIZE_THREAD__)
#define FAULT_THREAD_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FAULT_THREAD_SANITIZED 1
#endif
#endif
#ifndef FAULT_THREAD_SANITIZED
#define FAULT_THREAD_SANITIZED 0
#endif

/* As child_run, in a child whose crash signals have no handlers yet: sanitizers bring some, which would have the last word. */
void fault_run_child(void (*fn)(void *arg), void *arg, child_result *result);

void fault_read_null(void *arg);
void fault_write_null(void *arg);
void fault_read_far(void *arg);       /* 40,000 bytes past NULL */
void fault_call_null(void *arg);      /* calls it */
void fault_write_constant(void *arg); /* memory that is read-only */
void fault_read_cut_file(void *arg);  /* a mapped file that was cut: SIGBUS */
void fault_in_libc(void *arg);        /* memcpy reads the NULL */
void fault_overflow(void *arg);       /* recurses until the stack is full */

#ifdef __x86_64__
void fault_divide_by_zero(void *arg);
void fault_read_noncanonical(void *arg); /* an address that the processor refuses without telling it */
#endif

#endif
