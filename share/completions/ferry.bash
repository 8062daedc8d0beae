# bash completion for ferry: installed as .../bash-completion/completions/ferry, or: . <(ferry completion bash)

_ferry() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} word
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W 'run doctor explain sim check bench demo completion version --help --version' -- "$cur")
    return
  fi
  if [[ $command == run ]]; then
    local i
    for ((i = 2; i < COMP_CWORD; ++i)); do
      [[ ${COMP_WORDS[i]} == -- ]] || continue
      # The program's own completion, as if it stood alone.
      if declare -F _command_offset >/dev/null; then
        _command_offset $((i + 1))
      elif ((COMP_CWORD == i + 1)); then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur"; compgen -f -- "$cur")
      else
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      fi
      return
    done
  fi
  case $prev in
    --replay | --html | --config | --stats | --trace | --report | --socket)
      # ferry sim --trace takes no file.
      if [[ $command != sim ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
      fi
      ;;
    --store-dir)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -d -- "$cur")
      return
      ;;
    --prefetch) mapfile -t COMPREPLY < <(compgen -W 'none sequential stride density both' -- "$cur"); return ;;
    --victims) mapfile -t COMPREPLY < <(compgen -W 'probe lru fifo random' -- "$cur"); return ;;
    --leave) mapfile -t COMPREPLY < <(compgen -W 'never thrash cost' -- "$cur"); return ;;
    --store-codec) mapfile -t COMPREPLY < <(compgen -W 'zstd lz4 none' -- "$cur"); return ;;
    --store-io) mapfile -t COMPREPLY < <(compgen -W 'uring threads' -- "$cur"); return ;;
    --system) mapfile -t COMPREPLY < <(compgen -W '64M 256M 1G' -- "$cur"); return ;;
    --store) mapfile -t COMPREPLY < <(compgen -W '0 512M 2G 8G' -- "$cur"); return ;;
    --store-memory) mapfile -t COMPREPLY < <(compgen -W '0 16M 64M 256M' -- "$cur"); return ;;
    --vram) mapfile -t COMPREPLY < <(compgen -W '64M 256M 1G' -- "$cur"); return ;;
    --granularity) mapfile -t COMPREPLY < <(compgen -W '4K 16K 64K 256K 2M' -- "$cur"); return ;;
    --policy) mapfile -t COMPREPLY < <(compgen -W 'none preempt reserve reserve-in-flight exclusive query track pinned' -- "$cur"); return ;;
    --hardware) mapfile -t COMPREPLY < <(compgen -W 'preempt no-preempt retry no-retry preempt,no-retry no-preempt,retry no-preempt,no-retry' -- "$cur"); return ;;
    --pid) mapfile -t COMPREPLY < <(cd /proc && compgen -W "$(printf '%s ' [0-9]*)" -- "$cur"); return ;;
    --save)
      compopt -o dirnames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -d -- "$cur")
      return
      ;;
    --bug)
      mapfile -t COMPREPLY < <(compgen -W 'all skip_cpu_revoke skip_device_revoke drop_wake lose_dirty free_before_revoke
        free_before_copy stale_map write_map_on_read over_budget ignore_copy_error wrong_vram_page forget_free_waiter
        leak_chunk keep_chunk_contents map_both_writable refill_nothing drop_before_stored ignore_store_error stale_store leak_system_charge forget_memory_waiter' -- "$cur")
      return
      ;;
    --cus | --devices | --schedules | --preemptions | --states | --reserved-cus | --seed | --steps | --runs | --jobs | --bytes | --repeat | --limit) return ;;
  esac
  case $command in
    run) word='--vram --cus --devices --hive --granularity --policy --hardware --reserved-cus --system --store --store-memory --store-dir --prefetch --victims --leave --store-codec --store-io --config --malloc --stats --trace --report --quiet --no-progress --help --' ;;
    doctor) word='--json --help' ;;
    explain) word='--pid --bytes --socket --json --help' ;;
    check)
      word='--policy --hardware --exhaustive --schedules --preemptions --seed --states --bug --replay --save --html --jobs --json --list --help all'
      if [[ $cur != -* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -W "all $(ferry check --list 2>/dev/null | cut -d' ' -f1)" -- "$cur"; compgen -f -X '!*.scn' -- "$cur")
        return
      fi
      ;;
    sim) word='--seed --steps --runs --bug --budget --trace --jobs --help' ;;
    demo) word='deadlock policies soak --policy --times --seconds --html --applications --seed --json --help' ;;
    bench) word='core fault-1cu fault-all fault-cpu migrate kernels bfs pagerank stencil --json --repeat --limit --verbose --help' ;;
    completion) word='bash zsh fish --help' ;;
    version) word='--help' ;;
    *) return ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$word" -- "$cur")
}
complete -F _ferry ferry
