// Command check renders every overlay as `kustomize build` does and holds each object against what an API server would: strict
// decoding, defaults and validation by Kubernetes' own code, the Pod Security Standard of its namespace, and the schemas of KEDA
// and of the Prometheus operator. No cluster and no network are needed, but the Go module proxy for the first build.
//
//	go run . [-write]    in infra/k8s/check; npm run check:k8s does it
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

// The folder of this program is beside what it checks.
const root = ".."

func main() {
	write := flag.Bool("write", false, "write infra/k8s/rendered anew instead of comparing it")
	flag.Parse()
	problems, err := check(*write)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for _, problem := range problems {
		fmt.Fprintln(os.Stderr, problem)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
}

func check(write bool) ([]string, error) {
	crds, err := loadSchemas()
	if err != nil {
		return nil, err
	}
	overlays, err := filepath.Glob(filepath.Join(root, "overlays", "*", "kustomization.yaml"))
	if err != nil || len(overlays) == 0 {
		return nil, fmt.Errorf("expected overlays in %s/overlays, found none (%v)", root, err)
	}
	digest, err := digestOfSources()
	if err != nil {
		return nil, err
	}
	var problems []string
	for _, file := range overlays {
		name := filepath.Base(filepath.Dir(file))
		objects, text, err := render(filepath.Dir(file))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found := checkObjects(objects, crds)
		for _, problem := range found {
			problems = append(problems, name+": "+problem)
		}
		fmt.Printf("%s: %d objects, %d problems\n", name, len(objects), len(found))
		problem, err := keep(name, digest, text, write)
		if err != nil {
			return nil, err
		}
		if problem != "" {
			problems = append(problems, problem)
		}
	}
	return problems, nil
}

func checkObjects(objects []object, crds schemas) []string {
	var problems []string
	for _, each := range objects {
		for _, err := range checkObject(each, objects, crds) {
			problems = append(problems, fmt.Sprintf("%s %s: %s", each.kind.Kind, each.name, err))
		}
	}
	return problems
}

func checkObject(each object, all []object, crds schemas) []string {
	if schema, ok := crds[each.kind]; ok {
		return schema.check(each)
	}
	internal, versioned, err := decode(each)
	if err != nil {
		return []string{err.Error()}
	}
	problems := validate(each, internal)
	problems = append(problems, restricted(versioned)...)
	return append(problems, marking(versioned)...)
}
