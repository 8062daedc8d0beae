# fish completion for ferry: install as .../vendor_completions.d/ferry.fish, or: ferry completion fish | source

function __ferry_before_program
    not contains -- -- (commandline -opc)
end

complete -c ferry -f
complete -c ferry -n __fish_use_subcommand -l help -d 'How to use it'
complete -c ferry -n __fish_use_subcommand -l version -d 'Print the version'
complete -c ferry -n __fish_use_subcommand -a run -d 'Run a program under a chosen machine'
complete -c ferry -n __fish_use_subcommand -a doctor -d 'Say what this machine offers'
complete -c ferry -n __fish_use_subcommand -a explain -d 'Say where the pages behind a pointer lie'
complete -c ferry -n __fish_use_subcommand -a sim -d 'Run the core against simulated failures'
complete -c ferry -n __fish_use_subcommand -a check -d 'Go through every order of events of a scenario'
complete -c ferry -n __fish_use_subcommand -a bench -d 'Measure Ferry beside the floor of this machine'
complete -c ferry -n __fish_use_subcommand -a demo -d 'Show forward progress: a deadlock, policies, a soak'
complete -c ferry -n '__fish_seen_subcommand_from demo' -f -a 'deadlock policies soak'
complete -c ferry -n '__fish_seen_subcommand_from demo' -l policy -x -d 'A policy or all'
complete -c ferry -n __fish_use_subcommand -a completion -d 'Print the completion script of a shell'
complete -c ferry -n __fish_use_subcommand -a version -d 'Print the version'

set -l run '__fish_seen_subcommand_from run; and __ferry_before_program'
complete -c ferry -n $run -l vram -x -a '64M 256M 1G' -d 'Memory of each device'
complete -c ferry -n $run -l cus -x -d 'Compute units of each device'
complete -c ferry -n $run -l devices -x -d 'Number of devices'
complete -c ferry -n $run -l hive -x -a all -d 'Devices that are linked'
complete -c ferry -n $run -l granularity -x -a '4K 16K 64K 256K 2M' -d 'What moves together'
complete -c ferry -n $run -l policy -x -a 'none preempt reserve reserve-in-flight exclusive query track pinned' -d 'How fences and page faults share a device'
complete -c ferry -n $run -l hardware -x -a 'preempt no-preempt retry no-retry preempt,no-retry no-preempt,retry no-preempt,no-retry' -d 'What the devices can do'
complete -c ferry -n $run -l reserved-cus -x -d 'Compute units kept from compute'
complete -c ferry -n $run -l system -x -a '64M 256M 1G' -d 'System memory for managed pages'
complete -c ferry -n $run -l store -x -a '0 512M 2G 8G' -d 'Room beneath system memory'
complete -c ferry -n $run -l store-memory -x -a '0 16M 64M 256M' -d 'Memory for compressed pages'
complete -c ferry -n $run -l store-dir -x -a '(__fish_complete_directories)' -d 'Where the file of the store lies'
complete -c ferry -n $run -l prefetch -x -a 'none sequential stride density both' -d 'What comes along with a fault'
complete -c ferry -n $run -l victims -x -a 'probe lru fifo random' -d 'What leaves full VRAM'
complete -c ferry -n $run -l leave -x -a 'never thrash cost' -d 'What stays in system memory'
complete -c ferry -n $run -l store-codec -x -a 'zstd lz4 none' -d 'How pages are compressed'
complete -c ferry -n $run -l store-io -x -a 'uring threads' -d 'How the file is read and written'
complete -c ferry -n $run -l config -r -F -d 'Machine and policy from a file'
complete -c ferry -n $run -l malloc -d 'Make the whole heap managed'
complete -c ferry -n $run -l stats -r -F -d 'Write the counters as JSON'
complete -c ferry -n $run -l trace -r -F -d 'Write a Chrome / Perfetto trace'
complete -c ferry -n $run -l report -r -F -d 'Write a page with plots'
complete -c ferry -n $run -s q -l quiet -d 'No summary and no progress'
complete -c ferry -n $run -l no-progress -d 'No line of progress'
complete -c ferry -n $run -l help -d 'How to use it'
complete -c ferry -n '__fish_seen_subcommand_from run; and not __ferry_before_program' -F

complete -c ferry -n '__fish_seen_subcommand_from doctor' -l json -d 'One JSON object'
complete -c ferry -n '__fish_seen_subcommand_from doctor' -l help -d 'How to use it'

complete -c ferry -n '__fish_seen_subcommand_from explain' -l pid -x -a '(__fish_complete_pids)' -d 'The process'
complete -c ferry -n '__fish_seen_subcommand_from explain' -l bytes -x -d 'Tell of every page of so many bytes'
complete -c ferry -n '__fish_seen_subcommand_from explain' -l socket -r -F -d 'The socket of the manager'
complete -c ferry -n '__fish_seen_subcommand_from explain' -l json -d 'One JSON array'
complete -c ferry -n '__fish_seen_subcommand_from explain' -l help -d 'How to use it'

set -l bugs all skip_cpu_revoke skip_device_revoke drop_wake lose_dirty free_before_revoke free_before_copy stale_map \
    write_map_on_read over_budget ignore_copy_error wrong_vram_page forget_free_waiter leak_chunk keep_chunk_contents \
    map_both_writable refill_nothing drop_before_stored ignore_store_error stale_store leak_system_charge forget_memory_waiter
complete -c ferry -n '__fish_seen_subcommand_from sim' -l seed -x -d 'Seed of the first run'
complete -c ferry -n '__fish_seen_subcommand_from sim' -l steps -x -d 'Length of a run'
complete -c ferry -n '__fish_seen_subcommand_from sim' -l runs -x -d 'Number of runs'
complete -c ferry -n '__fish_seen_subcommand_from sim' -l budget -x -a 'on off seed' -d 'Whether system memory has a budget'
complete -c ferry -n '__fish_seen_subcommand_from sim' -l bug -x -a "$bugs" -d 'Plant a bug'
complete -c ferry -n '__fish_seen_subcommand_from sim' -l trace -d 'Print every line of the run'
complete -c ferry -n '__fish_seen_subcommand_from sim' -l jobs -x -d 'Threads'
complete -c ferry -n '__fish_seen_subcommand_from sim' -l help -d 'How to use it'

set -l all_bugs skip_cpu_revoke skip_device_revoke drop_wake lose_dirty free_before_revoke free_before_copy stale_map write_map_on_read over_budget ignore_copy_error wrong_vram_page forget_free_waiter leak_chunk keep_chunk_contents map_both_writable signal_before_done forget_fence_waiter skip_shared_fence evict_busy_buffer claim_before_gate publish_before_gate leak_cu grant_reserved_cu switch_while_visible query_says_no track_forgets_unit refill_nothing userptr_keeps_old drop_before_stored ignore_store_error stale_store leak_system_charge forget_memory_waiter
complete -c ferry -n '__fish_seen_subcommand_from check' -a 'all (ferry check --list 2>/dev/null | string split -f1 " ")'
complete -c ferry -n '__fish_seen_subcommand_from check' -F
complete -c ferry -n '__fish_seen_subcommand_from check' -l policy -x -a 'all none preempt reserve reserve-in-flight exclusive query track pinned' -d 'One policy, or all'
complete -c ferry -n '__fish_seen_subcommand_from check' -l hardware -x -a all -d 'Such as units=2,preempts=no'
complete -c ferry -n '__fish_seen_subcommand_from check' -l exhaustive -d 'Search through every state'
complete -c ferry -n '__fish_seen_subcommand_from check' -l schedules -x -d 'Random schedules instead'
complete -c ferry -n '__fish_seen_subcommand_from check' -l preemptions -x -d 'In one random schedule'
complete -c ferry -n '__fish_seen_subcommand_from check' -l seed -x -d 'Of the first random schedule'
complete -c ferry -n '__fish_seen_subcommand_from check' -l states -x -d 'Most states of one case'
complete -c ferry -n '__fish_seen_subcommand_from check' -l bug -x -a "all $all_bugs" -d 'Plant a bug'
complete -c ferry -n '__fish_seen_subcommand_from check' -l replay -r -F -d 'Go once through a counterexample'
complete -c ferry -n '__fish_seen_subcommand_from check' -l save -r -a '(__fish_complete_directories)' -d 'Write what is not clean'
complete -c ferry -n '__fish_seen_subcommand_from check' -l html -r -F -d 'Draw the first counterexample'
complete -c ferry -n '__fish_seen_subcommand_from check' -l jobs -x -d 'Threads'
complete -c ferry -n '__fish_seen_subcommand_from check' -l json -d 'One JSON object'
complete -c ferry -n '__fish_seen_subcommand_from check' -l list -d 'Names of scenarios'

complete -c ferry -n '__fish_seen_subcommand_from bench' -l json -d 'One JSON array'
complete -c ferry -n '__fish_seen_subcommand_from bench' -l repeat -x -d 'Samples of each side'
complete -c ferry -n '__fish_seen_subcommand_from bench' -l limit -x -d 'Seconds for a bench'
complete -c ferry -n '__fish_seen_subcommand_from bench' -l verbose -d 'Print every sample'
complete -c ferry -n '__fish_seen_subcommand_from bench' -a 'core fault-1cu fault-all fault-cpu migrate kernels bfs pagerank stencil'
complete -c ferry -n '__fish_seen_subcommand_from bench' -l help -d 'How to use it'
complete -c ferry -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'
complete -c ferry -n '__fish_seen_subcommand_from completion' -l help -d 'How to use it'
complete -c ferry -n '__fish_seen_subcommand_from version' -l help -d 'How to use it'
