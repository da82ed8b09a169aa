// Replays scenarios of server-side apply with the library that the Kubernetes API server itself uses for it
// (sigs.k8s.io/structured-merge-diff, v4) and prints what it says. Reads and writes JSON; see scenarios.py.
package main

import (
	"encoding/json"
	"os"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v4/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v4/merge"
	"sigs.k8s.io/structured-merge-diff/v4/typed"
)

type op struct {
	Op      string                 `json:"op"`
	Manager string                 `json:"manager"`
	Force   bool                   `json:"force"`
	Object  map[string]interface{} `json:"object"`
}
type conv struct{}

func (conv) Convert(o *typed.TypedValue, v fieldpath.APIVersion) (*typed.TypedValue, error) {
	return o, nil
}
func (conv) IsMissingVersionError(error) bool { return false }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

var parser = func() *typed.Parser {
	p, err := typed.NewParser(schema)
	must(err)
	return p
}()

const schema = `types:
- name: root
  map:
    fields:
    - name: data
      type: {namedType: strings}
    - name: metadata
      type: {namedType: meta}
    - name: spec
      type: {namedType: spec}
- name: strings
  map: {elementType: {scalar: untyped}}
- name: meta
  map:
    fields:
    - name: labels
      type: {namedType: strings}
- name: spec
  map:
    fields:
    - name: list
      type: {list: {elementType: {namedType: any}, elementRelationship: atomic}}
    - name: map
      type: {namedType: inner}
    - name: "n"
      type: {scalar: untyped}
- name: inner
  map:
    fields:
    - name: d
      type: {namedType: leaf}
    - name: e
      type: {namedType: leaf}
- name: leaf
  map:
    fields:
    - name: in
      type: {scalar: untyped}
- name: any
  scalar: untyped
  list: {elementType: {namedType: any}, elementRelationship: atomic}
  map: {elementType: {namedType: any}, elementRelationship: atomic}
`

func main() {
	var scenarios [][]op
	must(json.NewDecoder(os.Stdin).Decode(&scenarios))
	out := []interface{}{}
	for _, s := range scenarios {
		u := merge.Updater{Converter: conv{}}
		live, err := parser.Type("root").FromUnstructured(map[string]interface{}{})
		must(err)
		managers := fieldpath.ManagedFields{}
		steps := []interface{}{}
		for _, o := range s {
			obj, err := parser.Type("root").FromUnstructured(o.Object)
			must(err)
			conflicts := [][]string{}
			id := o.Manager + "/" + o.Op
			if o.Op == "Apply" {
				n, m, err := u.Apply(live, obj, "v1", managers.Copy(), id, o.Force)
				if c, ok := err.(merge.Conflicts); ok {
					for _, one := range c {
						conflicts = append(conflicts, []string{one.Manager, one.Path.String()})
					}
				} else {
					must(err)
					managers = m
					if n != nil {
						live = n
					}
				}
			} else {
				n, m, err := u.Update(live, obj, "v1", managers.Copy(), id)
				must(err)
				managers = m
				live = n
			}
			held := map[string]interface{}{}
			for name, vs := range managers {
				b, err := vs.Set().ToJSON()
				must(err)
				var f interface{}
				must(json.NewDecoder(strings.NewReader(string(b))).Decode(&f))
				held[name] = f
			}
			steps = append(steps, map[string]interface{}{"conflicts": conflicts, "live": live.AsValue().Unstructured(), "held": held})
		}
		out = append(out, steps)
	}
	must(json.NewEncoder(os.Stdout).Encode(out))
}
