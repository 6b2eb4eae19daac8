// SPDX-License-Identifier: MIT

// Go's defer, panic and recover; the protocol is that of bench.h.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"time"
)

//go:noinline
func add(sum *uint64) {
	*sum++
}

//go:noinline
func scopeDeferTurn(sum *uint64) {
	defer add(sum)
}

func scopeDefer(count uint64) uint64 {
	var sum uint64
	for i := uint64(0); i < count; i++ {
		scopeDeferTurn(&sum)
	}
	return sum
}

//go:noinline
func loopDeferScope(sum *uint64, count uint64) {
	for i := uint64(0); i < count; i++ {
		defer add(sum)
	}
}

func loopDefer(count uint64) uint64 {
	var sum uint64
	for ; count > 100; count -= 100 {
		loopDeferScope(&sum, 100)
	}
	loopDeferScope(&sum, count)
	return sum
}

// The deferred function recovers and adds, as the border and the defer of the other side do.
//
//go:noinline
func runOkTurn(sum *uint64) {
	defer func() {
		if recover() != nil {
			panic("nothing panics here")
		}
		add(sum)
	}()
	runOkBody()
}

//go:noinline
func runOkBody() {
}

func runOk(count uint64) uint64 {
	var sum uint64
	for i := uint64(0); i < count; i++ {
		runOkTurn(&sum)
	}
	return sum
}

//go:noinline
func panicOneTurn(sum *uint64) (code int) {
	defer func() {
		code = recover().(int)
		add(sum)
	}()
	panic(7)
}

func panicOne(count uint64) uint64 {
	var sum uint64
	for i := uint64(0); i < count; i++ {
		sum += uint64(panicOneTurn(&sum))
	}
	return sum
}

//go:noinline
func panicTenFrame(sum *uint64, depth int) {
	defer add(sum)
	defer add(sum)
	defer add(sum)
	defer add(sum)
	defer add(sum)
	defer add(sum)
	defer add(sum)
	defer add(sum)
	defer add(sum)
	defer add(sum)
	if depth == 1 {
		panic(7)
	}
	panicTenFrame(sum, depth-1)
}

//go:noinline
func panicTenTurn(sum *uint64) (code int) {
	defer func() {
		code = recover().(int)
	}()
	panicTenFrame(sum, 10)
	return 0
}

func panicTen(count uint64) uint64 {
	var sum uint64
	for i := uint64(0); i < count; i++ {
		sum += uint64(panicTenTurn(&sum))
	}
	return sum
}

func defers100k(count uint64) uint64 {
	var sum uint64
	for i := uint64(0); i < count; i++ {
		loopDeferScope(&sum, 100000)
	}
	return sum
}

var works = map[string]func(uint64) uint64{
	"scope-defer": scopeDefer,
	"loop-defer":  loopDefer,
	"run-ok":      runOk,
	"panic-1":     panicOne,
	"panic-10x10": panicTen,
	"defers-100k": defers100k,
}

func serve(name string, count uint64) {
	work, known := works[name]
	if !known {
		fmt.Printf("error this worker knows no %s\n", name)
		os.Exit(1)
	}
	begun := time.Now() // has the monotonic clock's reading
	check := work(count)
	fmt.Println(time.Since(begun).Nanoseconds(), check)
}

func main() {
	if len(os.Args) == 3 {
		count, _ := strconv.ParseUint(os.Args[2], 10, 64)
		serve(os.Args[1], count)
		return
	}
	var name string
	var count uint64
	in := bufio.NewReader(os.Stdin)
	for {
		if n, _ := fmt.Fscan(in, &name, &count); n != 2 {
			return
		}
		serve(name, count)
	}
}
