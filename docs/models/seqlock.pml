/* Session rows (dataplane/kernel/session_table.c, seqlock.h) under weak memory,
 * with a writer that may be killed between any two of its stores.
 *
 *   spin -a seqlock.pml && cc -O2 -o pan pan.c && ./pan         errors: 0
 *   the same with spin -DNO_RELEASE_FENCE -a seqlock.pml        an error is found
 *
 * Likewise for each of NO_ACQUIRE_FENCE, NO_ACQUIRE_LOAD, NO_RELEASE_END and
 * NO_GENERATION_MARK: leaving out any one of them lets a torn row be believed, so
 * the model sees what it is there to see. tests/kernel/test_seqlock_model.py runs
 * all six.
 *
 * The memory. The writer's stores wait in `pending` and reach memory in any order
 * that C11 leaves open: two stores to one word stay in order; a release fence or
 * a release store keeps what stands before it before what follows the fence, or
 * before that store. A reader's loads between two fences are done in any order.
 * Once in memory a store is seen by everybody at once (multi-copy atomicity, as
 * on x86-64, ARMv8 and RISC-V). What a killed process has stored still arrives,
 * and it has arrived when its successor starts, who was told of the death by the
 * kernel.
 *
 * A row is four words here: the sequence, the configuration's generation, the
 * rest of it (PAYLOAD, which says of which generation it is), and ident (0: free). */

#define SEQUENCE 0
#define GENERATION 1
#define PAYLOAD 2
#define IDENT 3
#define WORDS 4

#ifndef LAST
#define LAST 3          /* publishes, one over the other */
#endif
#ifndef KILLS
#define KILLS 2
#endif
#define ROOM 6          /* more than one write's stores */

typedef store_t {
    byte word;
    byte value;
    byte era;           /* grows with every release */
};

byte memory[WORDS];
store_t pending[ROOM];
byte count;             /* of pending stores */
byte era;
byte kills = KILLS;

inline store(to, what)
{
    atomic {
        count < ROOM;
        pending[count].word = to;
        pending[count].value = what;
        pending[count].era = era;
        count++
    }
}

/* What comes later stays behind everything before. */
inline release_fence() { era++ }

/* The store stays behind everything before; what comes later may overtake it. */
inline store_release(to, what)
{
    era++;
    store(to, what)
}

/* A pending store may go when no earlier one is of the same word or of an
 * earlier era. */
active proctype Memory()
{
    byte i, j;
    bool free;

end:
    do
    :: atomic {
           count > 0 ->
           i = 0;
           do
           :: i + 1 < count -> i++
           :: break
           od;
           free = true;
           j = 0;
           do
           :: j < i ->
              free = free && pending[j].word != pending[i].word &&
                     pending[j].era == pending[i].era;
              j++
           :: else -> break
           od;
           if
           :: free ->
              memory[pending[i].word] = pending[i].value;
              do
              :: i + 1 < count ->
                 pending[i].word = pending[i + 1].word;
                 pending[i].value = pending[i + 1].value;
                 pending[i].era = pending[i + 1].era;
                 i++
              :: else -> break
              od;
              count--;
              pending[count].word = 0;
              pending[count].value = 0;
              pending[count].era = 0;
              if
              :: count == 0 -> era = 0
              :: else
              fi
           :: else
           fi;
           i = 0;
           j = 0;
           free = false
       }
    od
}

/* Here SIGKILL may strike. */
inline may_die()
{
    if
    :: true
    :: kills > 0 -> kills--; goto dead
    fi
}

active proctype ControlPlane()
{
    byte generation, odd;

start:
    count == 0;
    /* ek_session_recover */
    odd = memory[SEQUENCE];
    if
    :: odd % 2 == 1 ->
       if
       :: memory[GENERATION] != memory[IDENT] ->
          store_release(IDENT, 0);
          may_die()
       :: else
       fi;
       store_release(SEQUENCE, odd + 1);
       odd = odd + 1;
       may_die()
    :: else
    fi;
    /* ek_session_publish */
    do
    :: generation < LAST ->
       generation++;
       odd = odd + 1;
       store(SEQUENCE, odd);
       may_die();
#ifndef NO_RELEASE_FENCE
       release_fence();
#endif
#ifndef NO_GENERATION_MARK
       store(GENERATION, 0);
       may_die();
       release_fence();
#endif
       store(PAYLOAD, generation);
       may_die();
       store_release(GENERATION, generation);
       may_die();
       store_release(IDENT, generation);
       may_die();
#ifdef NO_RELEASE_END
       store(SEQUENCE, odd + 1);
#else
       store_release(SEQUENCE, odd + 1);
#endif
       odd = odd + 1;
       may_die()
    :: else -> break
    od;
    count == 0;
    assert(memory[SEQUENCE] % 2 == 0);
    goto done;
dead:
    goto start;
done:
    skip
}

/* ek_session_read: one try, begun at any time. Tries know nothing of each other,
 * so what holds for one holds for the bounded loop. */
active proctype Reader()
{
    byte begin, end_, generation, payload, ident;
    byte todo;

#ifdef NO_ACQUIRE_LOAD
    todo = 1 + 2 + 4 + 16;
#else
    begin = memory[SEQUENCE];
    if
    :: begin % 2 == 1 -> goto busy
    :: else
    fi;
    todo = 1 + 2 + 4;
#endif
#ifdef NO_ACQUIRE_FENCE
    todo = todo + 8;
#endif
    do
    :: todo & 1 -> generation = memory[GENERATION]; todo = todo - 1
    :: todo & 2 -> payload = memory[PAYLOAD]; todo = todo - 2
    :: todo & 4 -> ident = memory[IDENT]; todo = todo - 4
    :: todo & 8 -> end_ = memory[SEQUENCE]; todo = todo - 8
    :: todo & 16 -> begin = memory[SEQUENCE]; todo = todo - 16
    :: todo == 0 -> break
    od;
#ifndef NO_ACQUIRE_FENCE
    end_ = memory[SEQUENCE];
#endif
    if
    :: begin % 2 == 0 && begin == end_ && ident != 0 ->
       assert(generation == ident && payload == ident)
    :: else
    fi;
busy:
    skip
}
